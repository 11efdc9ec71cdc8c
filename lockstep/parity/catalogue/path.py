"""PTH: the same tokens by another way through the engine, and another number.

In: nothing of ours but the noun. Out: `FAULTS`, in code order.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="PTH01",
        title="Decode differs from prefill",
        what=(
            "One token at a time, through the kernel for decoding, gives other logits than the same tokens in one "
            "forward: a length that is one short, a state that is not carried, another block size."
        ),
        why_bad=(
            "Samples are drawn by the wrong network and any check by prefill says that the engine is right. The "
            "trainer, which is a prefill, disagrees with every sample."
        ),
        looks_like=(
            "The first token, which the prefill decides, agrees; later ones differ, often more with their position. "
            "The engine's own prefill of the same tokens agrees with the trainer. One report, as a mean multiplicative "
            "error: 322 decode against prefill, 1.03 once mended."
        ),
        inject="The plan of a decode step counts its keys one short, so that a row does not see the newest key.",
        mend="One attention kernel for both ways, walking keys in one order; and a test that compares them.",
        setting='one `attention_backend` for both ways, `kv_cache_dtype="auto"`; hybrid models: vLLM >= 0.17.0',
        source="NeMo-RL #2141; NeMo-RL #2100; NeMo-RL #4243; SGLang #25790",
    ),
    Fault(
        code="PTH02",
        title="A chunk boundary is off by one",
        what="A prompt is prefilled in chunks, and the second chunk starts one position too early or too late.",
        why_bad="Long prompts get another answer than short ones, depending on what else is being prefilled.",
        looks_like=(
            "Only prompts that were cut (path `chunk`), from the boundary on; the same prompt in one piece agrees. "
            "With positions moved by one from the boundary on, all of it goes away."
        ),
        inject="From the second chunk of a prompt on, rows stand one position too far.",
        mend="Derive positions from the count of tokens that were computed, in one place.",
        setting="`enable_chunked_prefill=False`, or `max_num_batched_tokens` above the longest prompt (vLLM)",
        source="nano-vllm #212; nano-vllm #218; vLLM #36580; vLLM #4697",
    ),
    Fault(
        code="PTH03",
        title="A preempted request resumes at the wrong position",
        what=(
            "Its blocks were taken away for want of memory. When it runs again, what it has already drawn is counted "
            "once too often, or not at all."
        ),
        why_bad="Correct in every test, wrong under load, and only in long samples: those that a reward looks at most.",
        looks_like=(
            "Only samples with a preemption (path `recompute`), from there on. With positions moved by one from the "
            "resumption on, all of it goes away. Without memory pressure, nothing."
        ),
        inject="A request that was computed again goes on one position too far, in a pool that is too small.",
        mend="A resumed request is a prompt of all its tokens, and nothing else.",
        setting="no preemption until mended: more `gpu_memory_utilization`, fewer `max_num_seqs` (vLLM)",
        source="nano-vllm #144; nano-vllm #211; nano-vllm #233",
    ),
    Fault(
        code="PTH04",
        title="The result depends on who shares the batch",
        what=(
            "A row's arithmetic changes with the number of rows beside it: another tiling, another split of a sum, a "
            "scale that is shared by the batch."
        ),
        why_bad=(
            "A sample cannot be repeated, and every comparison has a noise floor that depends on load. Small on "
            "average, it decides between tokens that are nearly equal."
        ),
        looks_like=(
            "Noise around 0 in most samples. A request alone gives other bits than in a batch; the batch repeated "
            "gives the same bits again. A mean ratio near 1 proves nothing here."
        ),
        inject="Activations before the head are rounded to int8 with one scale for all rows of the batch.",
        mend="Kernels whose rows do not depend on their neighbours; where there are none, batches of one fixed shape.",
        setting="`VLLM_BATCH_INVARIANT=1` (vLLM); where it does not hold, a smaller `max_num_seqs`",
        source="vLLM #51187; vLLM #45683; vLLM #11778",
        hard=False,
    ),
    Fault(
        code="PTH05",
        title="The result depends on the order of requests",
        what="The same batch in another order gives other numbers: rows in the order of a set, a sum across requests.",
        why_bad=(
            "Order is decided by timing, so that two runs with one seed part. With tensor parallelism, ranks that "
            "order rows differently compute nonsense."
        ),
        looks_like=(
            "As PTH04; but the batch repeated in its order gives the same bits, and reordered it does not, though "
            "nobody has joined or left."
        ),
        inject="Activations before the head are rounded to int8 with the scale of one row of the batch, by its place.",
        mend="Sort whatever forms a batch by a key that timing cannot change.",
        setting="order requests by id before they form a batch; `VLLM_BATCH_INVARIANT=1` (vLLM)",
        source="mini-sglang #113",
        hard=False,
    ),
    Fault(
        code="PTH06",
        title="Async scheduling: one token late",
        what=(
            "The next step is scheduled before the last one has ended, with a placeholder in place of its token. "
            "Penalties, stop checks and processors that read the tokens so far miss the newest."
        ),
        why_bad=(
            "Repetition is punished one step late, stop strings overrun by one token, and the trainer, which sees all "
            "tokens, computes another distribution."
        ),
        looks_like=(
            "Requests with penalties or processors only, and only at tokens whose predecessor matters: a token drawn "
            "twice in a row is not punished. With penalties that see all but the last token, all of it goes away."
        ),
        inject="Penalties are computed from a history without its last token.",
        mend="Wait for the token where something reads it.",
        setting="`async_scheduling=False` (vLLM; on by default in recent releases)",
        source="vLLM #52461; vLLM #27878; vLLM #26467; vLLM #27910",
    ),
)

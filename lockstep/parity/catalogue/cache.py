"""CAC: keys and values have outlived what made them, or are somebody else's.

In: nothing of ours but the noun. Out: `FAULTS`, in code order.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="CAC01",
        title="The prefix cache survives the update",
        what=(
            "Block hashes are made of tokens and know nothing of weights, so that a prompt that was seen before an "
            "update is answered with keys and values of older weights after it."
        ),
        why_bad=(
            "New rollouts are drawn by a mixture of policies without a limit of age: a system prompt that is used all "
            "the time keeps the keys of the first step for ever. Recorded as on-policy, it is corrected by nobody."
        ),
        looks_like=(
            "Only requests with a cache hit differ (`cached_tokens` > 0), from their first token on; others agree. It "
            "grows with the steps since the prefix was first seen, and is gone after a restart. With older keys in the "
            "cached positions all of it goes away. Tried on vLLM 0.32's CPU build: up to 0.08 nats."
        ),
        inject="Updates keep the prefix cache, and its keys carry no weight version.",
        mend="Put the weight version into the root of every hash, or empty the cache as part of the update.",
        setting=(
            '`cache_salt=f"w{version}"` in each request (vLLM), or `/reset_prefix_cache` in the update; '
            "`use_prefix_cache_salt` in prime-rl"
        ),
        source=(
            "NeMo-RL #4018; prime-rl #1650; prime-rl #2266; SkyRL #2246; lmdeploy #4917; vLLM V0 to V1: Correctness "
            "Before Corrections in RL"
        ),
    ),
    Fault(
        code="CAC02",
        title="Keys kept across versions, and not labelled",
        what=(
            "Requests in flight go on over the keys that older weights wrote, which is a choice, and nothing records "
            "it: each token carries the version that drew it, as if all keys were of that version too."
        ),
        why_bad=(
            "Nobody can score such a token again. The trainer's logprob at the token's version is of another "
            "distribution, and the difference passes for staleness."
        ),
        looks_like=(
            "Only samples that an update interrupted; they agree up to it and differ from there on. Scored at each "
            "token's version over the older keys, all of it goes away."
        ),
        inject="Weights change in the middle of sequences, keys are kept, and the spans are left out of the record.",
        mend="Record which positions ran at which version, and score accordingly; or compute the keys anew.",
        setting=(
            "`/pause?mode=keep&clear_cache=true` in vLLM, `recompute_kv_cache_after_weight_updates: true` in NeMo-RL, "
            "or recorded spans"
        ),
        source=(
            "By design in PipelineRL and others; SkyRL #979; vLLM #32103; vLLM V0 to V1: Correctness Before "
            "Corrections in RL"
        ),
    ),
    Fault(
        code="CAC03",
        title="A reset that was refused, and answered 200",
        what=(
            "The prefix cache is told to empty itself after each update. While any block is held it refuses, writes a "
            "warning to its own log, and the client gets 200 OK."
        ),
        why_bad="The measure against CAC01 is in place, visible in every configuration, and without effect under load.",
        looks_like=(
            "The numbers of CAC01, under settings that say that a reset was acknowledged. It comes and goes with the "
            "load at the moment of the update: a test on an idle engine never sees it."
        ),
        inject="Every reset is acknowledged in the engine's statement, and none is carried out.",
        mend="Read the answer's body, and pause or preempt what runs before the reset.",
        setting="`/reset_prefix_cache?reset_running_requests=true`, and read `success` in the answer (vLLM >= 0.26)",
        source="vLLM #12284; vLLM #28827; SkyRL #1824; llm-d-benchmark #1918",
    ),
    Fault(
        code="CAC04",
        title="Another request's prefix",
        what=(
            "Two prefixes share one hash, because it is short, leaves something out (an image, an adapter, the "
            "parent), or is compared without the tokens."
        ),
        why_bad="A completion answers a question that somebody else asked. It is rare, and it leaks.",
        looks_like=(
            "A few requests with a cache hit differ by nats, from the first token on, with no update near. With the "
            "keys of another prompt of the batch or step in place of their own, all of it goes away."
        ),
        inject="The key of a page is made of its parent and its first token only.",
        mend="Hash everything that decides the keys, the parent included, and compare tokens at a hit.",
        setting='`prefix_caching_hash_algo="sha256"` (vLLM), or `enable_prefix_caching=False` until mended',
        source="nano-vllm #208; vLLM #8229; OpenVINO GenAI #3722",
    ),
    Fault(
        code="CAC05",
        title="A block freed while it is still read",
        what=(
            "A block of keys is given back, or never marked as used, while a request still refers to it. When memory "
            "runs short it is handed to another request and written over."
        ),
        why_bad=(
            "Rare garbage that comes with load and cannot be reproduced alone. Greedy decoding stops being "
            "deterministic."
        ),
        looks_like=(
            "Nothing without memory pressure. Then single samples that agree up to a block boundary or to a moment, "
            "and differ wildly from there on; others of the batch are untouched. No hypothesis about weights explains "
            "it."
        ),
        inject="Whoever finds a cached page forgets to take it off the list of free ones, in a pool that is too small.",
        mend="Count references, and prove at every step that free, used and cached blocks are all blocks.",
        setting="less pressure until mended: more `gpu_memory_utilization`, fewer `max_num_seqs` (vLLM)",
        source="vLLM #39146; vLLM #37076; vLLM #52360",
        hard=False,
    ),
)

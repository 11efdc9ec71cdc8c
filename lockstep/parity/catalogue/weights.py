"""WGT: the two sides do not compute with the same weights.

In: nothing of ours but the noun. Out: `FAULTS`, in code order.

WGT01, 05, 08 and 10 have one effect, an update without one; what the engine says of itself tells them apart.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="WGT01",
        title="The update is lost",
        what=(
            "The engine goes on with version n - 1 (or older) after the trainer has published n, and says so or is "
            "silent."
        ),
        why_bad=(
            "The run is off-policy by a lag that nobody configured. If it is lost once, the distance is one step; if "
            "always, the policy that acts never learns, while the loss looks alive."
        ),
        looks_like=(
            "All samples and paths differ, from the first step after an update on, by the size of the update, and more "
            "with every step if no update arrives: 0.015 against 0.201 nats was reported. Scored with older weights, "
            "all of it goes away. The label is older, or there is none."
        ),
        inject="What the trainer publishes never reaches the engine.",
        mend=(
            "Make sampling wait for the update, and compare the version of every token with the one that was published."
        ),
        setting=(
            "check `weight_version` of each output (vLLM >= 0.28) against the published one; TRL before #5313: "
            "`vllm_enable_sleep_mode=False`"
        ),
        source="TRL #5312; TRL #5313; verl #7495",
    ),
    Fault(
        code="WGT02",
        title="Some tensors are skipped",
        what="An update leaves tensors out: a renamed layer, a bucket that got lost, an adapter that is not merged.",
        why_bad=(
            "The engine runs a mixture of two policies that nobody trained. Part of every gradient never reaches the "
            "samples."
        ),
        looks_like=(
            "As a lost update, but smaller: only part of the mismatch goes away with older weights, all of it when "
            "just those layers are older. The label is new; digests of single tensors, read back, differ for some "
            "names."
        ),
        inject="The tensors of one layer never arrive; the label is the new one.",
        mend="Refuse an update that does not name every parameter and buffer once; compare a digest of each.",
        setting="a manifest of names, shapes and digests with each update; refuse it unless all of them arrive",
        source="SkyRL #1345; verl #7495; several others",
    ),
    Fault(
        code="WGT03",
        title="A torn update",
        what="A forward runs while weights are being written: first layers new, last layers old, or half of a tensor.",
        why_bad=(
            "A few tokens come from a network that never existed. If they are not finite the step is lost; if they "
            "are, it is trained on."
        ),
        looks_like=(
            "NaN or garbage in few steps (about 2 % of them in one report), at one row of the requests that were in "
            "flight, where the weight version changes. Later rows agree but for the keys that this row left."
        ),
        inject=(
            "In the middle of a batch one engine step runs with the embedding and the first layer new and all else "
            "old; the update is completed after it."
        ),
        mend="Update between two engine steps, never during one, and make it one transaction: all or nothing.",
        setting=(
            "`/pause` before the update and `/resume` after it (vLLM); `in_flight_weight_updates: false` in NeMo-RL "
            "with pipeline parallelism"
        ),
        source="NeMo-RL #2180; NeMo-RL #3839",
    ),
    Fault(
        code="WGT04",
        title="The head is not refreshed",
        what=(
            "A copy of the output head, made for fp32 logits or because it is tied to the embedding, is not made anew "
            "when the weights change."
        ),
        why_bad=(
            "The measure against a numerical mismatch (NUM01) becomes a larger one that grows. Embedding and head of a "
            "tied model drift apart."
        ),
        looks_like=(
            "Right until the first update, then all samples differ, more with every step. Hidden states agree up to "
            "the last; with only the head's weight older, all of the mismatch goes away. Tensors read back are the new "
            "ones."
        ),
        inject="The engine keeps the head that it prepared for the logits' product through all updates.",
        mend="Tie the copy to the version of the weights: rebuilt with them, or not used.",
        setting=(
            'the engine\'s own fp32 head (`hf_overrides={"head_dtype": "float32"}`, vLLM >= 0.26) instead of a '
            "cached copy"
        ),
        source="prime-rl #2438; prime-rl #2823",
    ),
    Fault(
        code="WGT05",
        title="The label moves on although the apply failed",
        what="Applying an update fails, with a warning; version number and staleness bookkeeping advance all the same.",
        why_bad="Every filter that trusts the label lets stale samples pass as fresh ones.",
        looks_like=(
            "The numbers of a lost update under a new label. The digest is that of the old weights: number and digest, "
            "as published, contradict each other."
        ),
        inject="The engine is given its old weights under the new number, and states their digest.",
        mend="A version is a number and a digest, and moves only after what serves has been verified.",
        setting="advance the version only when the update has answered and its digest matches; no `except: log`",
        source="TRL #5932; TRL #5937; tokenspeed #672",
    ),
    Fault(
        code="WGT06",
        title="A buffer is clobbered by reloading",
        what=(
            "Loading has a side effect that a second load repeats or undoes: a scale that is folded in twice, a buffer "
            "that no checkpoint holds and that comes back uninitialised."
        ),
        why_bad=(
            "The first weights are right, which is when everybody looks; each update makes the engine worse, with "
            "weights that are all correct."
        ),
        looks_like=(
            "Right until the first update. Then an identity update, the same weights once more, moves the outputs. "
            "Digests of all parameters agree. A KL of 0.0084 became 1.52 in one report."
        ),
        inject="A gain that is folded in at loading is folded in once more at every update; digests do not cover it.",
        mend=(
            "Reload everything that loading derives, buffers included, and try an identity update before the first "
            "step."
        ),
        setting="vLLM with #44371 and #42481 (layerwise reload keeps buffers); probe: update with the same weights",
        source="vLLM #44371; vLLM #42481; prime-rl #2482; vLLM #48312",
    ),
    Fault(
        code="WGT07",
        title="The trainer scores with fp32 masters, the engine with bf16",
        what=(
            "The trainer's forward uses its fp32 master weights. What it publishes, and what the engine samples with, "
            "is their bf16 rounding."
        ),
        why_bad=(
            "Small updates do not reach the engine until they add up to a bf16 step, so the trainer corrects and "
            "corrects what the policy cannot do yet. It is a difference between policies, not of precision."
        ),
        looks_like=(
            "The trainer alone deviates from an honest forward on the published weights; the engine is right. A small "
            "drift that does not shrink at lr = 0 once it is there, with confident disagreements in the tail."
        ),
        inject="The trainer's series is scored with its fp32 masters.",
        mend="Run the trainer's forward on the very tensors that are published, and keep masters in the optimizer.",
        setting="forward in the published dtype: `MixedPrecisionPolicy(param_dtype=torch.bfloat16)` for FSDP",
        source="The martingale finding; compare arXiv 2510.26788",
        hard=False,
    ),
    Fault(
        code="WGT08",
        title="200 OK, nothing transferred",
        what="The update is acknowledged, with the label that was sent, and no weight has been transferred.",
        why_bad=(
            "Every check that asks only whether something changed, or what the label is, passes. The engine repeats "
            "what it was told."
        ),
        looks_like=(
            "The numbers of a lost update; number and digest are the new ones, for they are echoed. Tensors read back "
            "are old, or cannot be had. A second update changes nothing; A, then B, then A again never shows B."
        ),
        inject=(
            "Updates are dropped, and the engine's statement repeats the newest label without reading anything back."
        ),
        mend="Read digests back from the weights that compute, and try A, B, A once before training.",
        setting="compare digests read back from the engine (`/weight_checker` in vLLM), not the status of the answer",
        source="tokenspeed #1373",
    ),
    Fault(
        code="WGT09",
        title="A stale scale of a low-precision copy",
        what="Weights are sent as scaled numbers; the numbers are new, their scale is that of older weights.",
        why_bad="Whole tensors are too large or too small by one factor: a temperature that nobody set.",
        looks_like=(
            "All samples differ after an update. One factor on the logits explains the mismatch if the scale is the "
            "head's, and no older weights do. Entropies of the two sides differ in one direction. Tensors read back "
            "are new."
        ),
        inject="The engine's head is rescaled to the largest value that the first head had.",
        mend="Send scale and numbers as one, or send plain weights and let the engine quantise.",
        setting="send checkpoint-format weights and let the engine requantise (vLLM: `quantization`, layerwise reload)",
        source="prime-rl #2467; prime-rl #3581; SGLang #27131",
    ),
    Fault(
        code="WGT10",
        title="Parameters change in place, a derived copy computes",
        what=(
            "The update writes the named parameters. The engine computes with something that was made of them before: "
            "packed for a kernel, transposed, captured in a graph."
        ),
        why_bad="The engine can show the new weights to anybody who asks, and uses the old ones.",
        looks_like=(
            "The numbers of a lost update, with label, digest and every tensor that is read back as published. With "
            "older weights all of the mismatch goes away."
        ),
        inject="The engine keeps the packed copies of its first weights through all updates.",
        mend="Update through the loader, which makes derived copies anew, and probe a logprob after every update.",
        setting=(
            '`collective_rpc("reload_weights", ...)` in vLLM instead of writing parameters in place (CPU: no effect)'
        ),
        source="Seen on vLLM 0.32's CPU build; vLLM #55087; SGLang #29916; vLLM #48312",
    ),
)

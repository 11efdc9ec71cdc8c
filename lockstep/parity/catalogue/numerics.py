"""NUM: the same formula, rounded otherwise.

In: nothing of ours but the noun. Out: `FAULTS`, in code order. A log ratio is trainer - sampler.

All of these are noise to the eye: means stay, tails and squares move. None is seen for certain in a few tokens, unless
both sides are otherwise one computation.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="NUM01",
        title="A bf16 head in the engine, an fp32 one in the trainer",
        what="The product that makes the logits is rounded to bf16 on one side and kept in fp32 on the other.",
        why_bad=(
            "Logits are large, and bf16 keeps 8 significant bits of them. Ratios become noise that is largest for "
            "unlikely tokens, which carry most of the gradient; clipping then removes them at random."
        ),
        looks_like=(
            "Log ratios of mean near 0 on nearly every token: the mean ratio stays at 1, clip rate, k3 KL and the "
            "tails rise, at every step alike and at lr = 0. Hidden states agree. With a bf16 head in the reference all "
            "of it goes away. Settings admit it."
        ),
        inject="The engine's head runs in the model's bf16, the trainer's in fp32; the engine says so.",
        mend="An fp32 head on both sides, from the same weights, made anew with them (WGT04).",
        setting=(
            '`hf_overrides={"head_dtype": "float32"}` (vLLM >= 0.26) and `cast_lm_head_to_fp32=True` (TRL), both or '
            "neither"
        ),
        source=(
            "vLLM V0 to V1: Correctness Before Corrections in RL; MiniMax-M1, arXiv 2506.13585; ScaleRL, arXiv "
            "2510.13786; vLLM #48390; open-instruct #1387"
        ),
        hard=False,
    ),
    Fault(
        code="NUM02",
        title="An fp32 head was asked for, and is silently bf16",
        what="The configuration asks for an fp32 head. The release does not know the key, or drops it for this model.",
        why_bad="The cause that everybody would look for first is struck off the list by a setting that reads right.",
        looks_like=(
            "The numbers of NUM01, under settings that say `head_dtype = float32`. A probe of the engine's logprobs "
            "finds only values that bf16 logits can give."
        ),
        inject="The engine's head runs in bf16, and its statement says float32.",
        mend="Believe no setting that a number contradicts; upgrade, or refuse an engine that ignores a key.",
        setting="vLLM >= 0.26: 0.18.1 drops `head_dtype` of generating models with one warning",
        source="Seen on vLLM 0.18.1; vLLM #24567; vLLM #48390",
        hard=False,
    ),
    Fault(
        code="NUM03",
        title="Rotary angles in bf16 on one side",
        what="Cosine and sine of the rotary embedding, or the positions themselves, are rounded to bf16 on one side.",
        why_bad=(
            "Above 256, bf16 cannot hold every integer, so that far positions share an angle. Long contexts are "
            "attended to by another rule than the one that is trained."
        ),
        looks_like=(
            "Noise that grows with the position, small in short samples, from the first layer on. Scored with rounded "
            "angles, all of it goes away."
        ),
        inject="The engine's cosines and sines are rounded to bf16.",
        mend="Tables in fp32 on both sides, rounded once where they are applied.",
        setting="RoPE tables in fp32 on both sides (`SGLANG_ROPE_CACHE_FP32=1` in SGLang off CUDA)",
        source="prime-rl #1167; vLLM #863; transformers #29285; SGLang #33117",
        hard=False,
    ),
    Fault(
        code="NUM04",
        title="Norms accumulated in bf16 on one side",
        what="The mean of squares of a norm is summed in bf16, or the result is rounded before the gain, on one side.",
        why_bad=(
            "Every layer adds a little, in one direction for a whole row. The sum reaches the logits as noise of the "
            "same kind as NUM01, where an fp32 head does not help."
        ),
        looks_like=(
            "Noise around 0 on all tokens and positions alike. Hidden states part at the first norm and go on parting, "
            "layer by layer. Scored with bf16 norms, all of it goes away."
        ),
        inject="Every result within the engine's norms is rounded to bf16.",
        mend="Accumulate in fp32, and use one kernel for both sides.",
        setting=(
            "a norm that accumulates in fp32: `VLLM_ROCM_USE_AITER_RMSNORM=0` (vLLM on ROCm), no fused norm in the "
            "trainer"
        ),
        source="AITER #3806; vLLM #36101; prime-rl #1167",
        hard=False,
    ),
    Fault(
        code="NUM05",
        title="Quantised keys or weights on one side",
        what=(
            "The engine keeps keys and values, or weights, in 8 bits. The trainer computes with what they were made of."
        ),
        why_bad=(
            "It is another policy, close on average and far in the tail. Greedy texts agree and evaluations stay, so "
            "that nothing warns before the ratios do."
        ),
        looks_like=(
            "Heavy tails: a median near the floor and a maximum of nats; one report had 32 of 32 greedy tokens equal "
            "with a largest difference of 1.8. Quantised keys leave the first row alone and grow with what is read; "
            "quantised weights do not. The reference with int8 keys or weights explains most of it, not every bit."
        ),
        inject="The engine writes int8 keys and values, or (every other seed) computes with int8 matrices.",
        mend="Unquantised rollouts, or a trainer that quantises in its forward as the engine does.",
        setting='`kv_cache_dtype="auto"` and `quantization=None` (vLLM)',
        source="mini-verl PR 95; NeMo-RL #1212; verl #4435",
        hard=False,
    ),
    Fault(
        code="NUM06",
        title="Scoring pass and train pass are cut differently",
        what=(
            "The trainer computes `old` logprobs in one pass and trains in another, with other microbatches, packing "
            "or kernels, and its sums depend on that."
        ),
        why_bad=(
            "The ratio is not 1 on the first pass over fresh samples, so that clipping begins before anything was "
            "learnt: 8 % of tokens outside of 0.9 to 1.1 from the size of a chunk alone, in one report."
        ),
        looks_like=(
            "The trainer differs from itself on the same weights and tokens. The engine may agree with either pass, or "
            "neither; noise around 0."
        ),
        inject="A second series of the trainer, as another cut of its sums would give it, stands beside the first.",
        mend=(
            "One pass for both: on-policy, the forward of the loss gives the logprobs. Or equal cuts, or invariant "
            "kernels."
        ),
        setting=(
            "`logprob_batch_size` = `train_micro_batch_size` in NeMo-RL; `log_prob_micro_batch_size_per_gpu` = "
            "`ppo_micro_batch_size_per_gpu` in verl"
        ),
        source="NeMo-RL documentation; TRL #6789",
        hard=False,
    ),
)

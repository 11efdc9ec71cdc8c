"""SEM: the two numbers are right, and mean something else.

In: nothing of ours but the noun. Out: `FAULTS`, in code order. A log ratio is trainer - sampler.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="SEM01",
        title="Raw instead of processed logprobs",
        what=(
            "The engine draws at temperature T, with its filters and penalties, and reports the logprobs of the plain "
            "logits. The trainer scores the distribution that was sampled."
        ),
        why_bad=(
            "Every importance ratio is off before anything was learnt. Clipping removes tokens for a reason that is no "
            "policy change, and corrections for staleness correct the wrong thing."
        ),
        looks_like=(
            "Nothing at all at T = 1 without filters. Elsewhere nearly every token differs, from the first on, at "
            "every step alike; the mean log ratio is the KL of the sampled from the plain distribution, hence above 0 "
            "for T < 1 and T > 1. At T = 0.6 a first-token ratio of 2.0 was reported."
        ),
        inject=(
            "The engine's sampler draws as ever and gives the log softmax of the undivided, unfiltered logits at the "
            "drawn ids. T is not 1, or the support is cut."
        ),
        mend=(
            "Ask the engine for processed logprobs. Where it has none, draw at T = 1 without filters; a raw logprob of "
            "one token cannot be turned into a processed one, for the normaliser is not known."
        ),
        setting=(
            '`logprobs_mode="processed_logprobs"` in vLLM (default: `raw_logprobs`); '
            "`actor_rollout_ref.rollout.logprobs_mode` in verl"
        ),
        source=(
            "TRL #4159; TRL #4163; prime-rl #697; PipelineRL #137; open-instruct #1678; vLLM V0 to V1: Correctness "
            "Before Corrections in RL"
        ),
    ),
    Fault(
        code="SEM02",
        title="The logprob is divided by T, not the logits",
        what="Somebody turns raw logprobs into tempered ones by dividing them by T, and leaves out the new normaliser.",
        why_bad=(
            "What comes out is no distribution: its probabilities do not sum to 1. The ratio carries a factor that "
            "depends on how sure the model is, so uncertain rows, where there is most to learn, are weighted most "
            "wrongly."
        ),
        looks_like=(
            "Right at T = 1. Elsewhere a log ratio of one sign for all tokens (above 0 for T < 1, below for T > 1), "
            "namely minus the log of the sum of `p ** (1 / T)` over the vocabulary: 0 where the model is certain, "
            "growing with entropy, and the same for whichever token of a row was drawn."
        ),
        inject="The engine's sampler gives the plain log softmax at the drawn ids, divided by T. T is not 1.",
        mend="Divide the logits and take the log softmax after that, on both sides.",
        setting='`logprobs_mode="processed_logprobs"` in vLLM, and no division of logprobs by the client',
        source="prime-rl #697",
    ),
    Fault(
        code="SEM03",
        title="Support renormalised by the engine, not by the trainer",
        what=(
            "With top-p, top-k or min-p the engine's logprobs are normalised over the tokens it kept. The trainer "
            "normalises over the whole vocabulary."
        ),
        why_bad=(
            "Every ratio is multiplied by the mass that was kept at that position, so gradients shrink where the model "
            "is unsure, and runs with truncated sampling were reported to collapse."
        ),
        looks_like=(
            "The log ratio of a token is the log of the kept mass of its row: never above 0, and 0 where all is kept. "
            "The mean ratio is the mean kept mass: 0.896 was reported at top-p 0.8, with 52 % of the ratios outside of "
            "0.9 to 1.1. The trainer is the side that deviates."
        ),
        inject="The trainer scores over the full vocabulary what the engine drew with top-p, top-k or min-p.",
        mend=(
            "Let the kept ids travel with the rollout and renormalise over them in the trainer, or draw without "
            "truncation."
        ),
        setting=(
            "`top_p=1.0, top_k=0, min_p=0.0` for training, or `return_sampling_mask` (vLLM >= 0.28) replayed by the "
            "trainer"
        ),
        source="TRL #6789; TRL #7269; prime-rl #3431; vLLM #49577; vLLM #42259",
    ),
    Fault(
        code="SEM04",
        title="Sampling parameters from the model's generation_config.json",
        what=(
            "A field that the request leaves out is filled in from a file in the model's directory: top_k = 20, a "
            "repetition penalty of 1.1, another temperature."
        ),
        why_bad=(
            "The run is called on-policy and samples another policy than its configuration says. It changes with the "
            "checkpoint that is loaded, and nobody has changed a setting."
        ),
        looks_like=(
            "With processed logprobs as SEM03 and SEM05 together: kept mass, and repeated tokens. With raw ones the "
            "series agree and only the tokens betray it: none outside of the k most likely is ever drawn. The resolved "
            "settings say `auto`, and the sampling fields that the engine echoes are not those that were sent."
        ),
        inject=(
            "Requests reach the engine with top-k, top-p and a repetition penalty that nobody asked for; what the "
            "trainer is told stays as asked."
        ),
        mend="Switch the file off, send every sampling field with every request, and echo what was resolved.",
        setting='`generation_config="vllm"` in vLLM (default: `auto`), and every sampling field in each request',
        source="NeMo-RL #3497; prime-rl #886",
    ),
    Fault(
        code="SEM05",
        title="Penalties on one side only",
        what=(
            "Presence, frequency or repetition penalties shape what the engine draws and reports, and the trainer does "
            "not know them; or the engine was asked for them and leaves them out."
        ),
        why_bad=(
            "The policy that is trained is not the one that acts. The error is largest in repetitive text, which a "
            "reward for length or format tends to breed."
        ),
        looks_like=(
            "Log ratios above 0 at tokens that occurred before, slightly below 0 at all others, and more so with every "
            "distinct token seen. The first token agrees, unless the prompt counts too (repetition penalty). At T = 1 "
            "an engine that leaves penalties out gives the very numbers of one that reports raw logprobs (SEM01)."
        ),
        inject=(
            "The sampler's logits are penalised, and the trainer is told parameters without penalties; or they are "
            "asked for, and the engine leaves them out."
        ),
        mend="Train without penalties, or give the trainer the same ones, computed from the tokens before each one.",
        setting="`repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0`, or the same in the trainer",
        source="vLLM #27878; prime-rl #886",
    ),
    Fault(
        code="SEM06",
        title="A grammar's mask inside the raw logprobs",
        what=(
            "Structured output sets forbidden logits to minus infinity before logprobs are taken, so that even raw "
            "ones are normalised over what the grammar allows."
        ),
        why_bad=(
            "A token that the grammar forces is reported with probability 1, whatever the model thought of it. Its "
            "ratio is the model's own probability of saying the right thing, often tiny."
        ),
        looks_like=(
            "Requests with a grammar only: the log ratio is the log of the mass that the grammar allows, below 0, with "
            "sampler logprobs of exactly 0.0 where one token was left. Requests without one agree."
        ),
        inject=(
            "Every second request forbids tokens; the engine's logprobs are taken after these are masked, and the "
            "trainer is told of no mask."
        ),
        mend=(
            "Hand the allowed ids to the trainer, like any other support, or leave constrained tokens out of the loss. "
            "Say in the contract whether the mask is inside."
        ),
        setting="mask tokens under `structured_outputs` out of the loss, or give the trainer the grammar's mask",
        source="Read in vLLM's source",
    ),
    Fault(
        code="SEM07",
        title="Prompt logprobs ignore the temperature",
        what=(
            "To score a completion the engine is handed it as a prompt. The logprobs of prompt tokens are those of T = "
            "1, whatever temperature was asked for."
        ),
        why_bad=(
            "Rescoring through the engine, as a check or as `old` logprobs, compares two temperatures. The usual check "
            "of an engine then finds a fault that is not in its samples, and hides those that are."
        ),
        looks_like=(
            "Scores by prefill differ from the logprobs that came with the tokens as SEM01 does, at T other than 1 "
            "only, and agree with the raw reading of an honest reference. They also pass the prefix cache by, so stale "
            "keys (CAC01) never show in them."
        ),
        inject="The sampler's series is taken from prompt logprobs at T = 1 while tokens are drawn at another T.",
        mend="Score at T = 1 or divide the logits yourself; take behaviour logprobs from the tokens as drawn.",
        setting="`logprobs=0` of the drawn tokens instead of `prompt_logprobs` (vLLM), or rescoring at T = 1",
        source="vLLM documentation; vLLM #37082",
    ),
    Fault(
        code="SEM08",
        title="A missing logprob replaced by a number",
        what=(
            "Where the engine gave no logprob (switched off, lost, not finite), a client fills in 0.0, which is "
            "probability 1, or a floor such as -100."
        ),
        why_bad=(
            "Ignorance is recorded as certainty. A zero makes the ratio the token's probability, a floor makes it "
            "huge; either way the gradient is of something that never happened."
        ),
        looks_like=(
            "Exact zeros in runs, or a pile of tokens at one value that no softmax gives twice. The log ratio there is "
            "the trainer's logprob less that value; all other tokens agree."
        ),
        inject="A share of the sampler's logprobs is set to 0.0, or to one floor, on their way to the trainer.",
        mend="Refuse a series with a hole. Undecided is never 0.0.",
        setting=(
            "`logprobs=0` in each vLLM request (gives the drawn token's); "
            "`actor_rollout_ref.rollout.calculate_log_probs=True` in verl; no fill value"
        ),
        source="verifiers #2078; SkyRL #758; SkyRL #1070",
    ),
)

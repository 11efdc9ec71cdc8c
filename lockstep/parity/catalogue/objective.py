"""OBJ: engine and trainer agree, and what is made of their numbers is wrong. Look here last.

In: nothing of ours but the noun. Out: `FAULTS`, in code order.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="OBJ01",
        title="Metrics computed after the mask",
        what="Ratios, KL or entropy are averaged over what a mask or a cut has left, under the names of the whole.",
        why_bad=(
            "The alarm looks only at what it has not removed. The worse it gets, the more is masked, and the calmer it "
            "is."
        ),
        looks_like=(
            "Reported means that the tokens of the step contradict: recomputed over all of them, `kl_new_old` is "
            "larger, over the kept ones it is the reported value. Engine and trainer are both right."
        ),
        inject="Tokens whose log ratio is far from 0 are masked, and the step's metrics are those of the others.",
        mend="Log raw values before any mask or clip, and beside them the fraction that was removed.",
        setting="log `sampling/raw_importance_sampling_ratio` (TRL #5243) or your own, before truncation and masking",
        source="TRL #5231; TRL #5243; NeMo-RL #3900",
    ),
    Fault(
        code="OBJ02",
        title="A sum where a mean was meant",
        what=(
            "The weight of a sequence is exp(sum of log ratios), where the objective was written for exp(mean), or the "
            "other way round. Both are in use: the first is importance sampling, the second is GSPO's."
        ),
        why_bad=(
            "A sum grows with length: long samples get weights far from 1, and a cap from above pulls the average "
            "below 1. A clip that was chosen for the one does nothing sensible to the other."
        ),
        looks_like=(
            "Tokens agree; reported weights are exp(sum) exactly, and their spread grows with length. One report of "
            "both on the same tokens, with a cap: mean weight 0.569 and 0.993."
        ),
        inject="Each sample's reported weight is the exponential of the sum of its log ratios.",
        mend="Say which one is meant, by name, and test it on two samples of different lengths.",
        setting=(
            '`importance_sampling_level="sequence"` (mean, GSPO) is not `vllm_importance_sampling_mode="sequence_*"` '
            "(sum) in TRL"
        ),
        source="TRL #5814; TRL #5815",
    ),
    Fault(
        code="OBJ03",
        title="Honest staleness",
        what=(
            "Tokens were drawn by weights that are some steps older than those that score them. Everybody says so: "
            "this is the update, and no fault."
        ),
        why_bad=(
            "It is not bad within the bound that the run was given. Unnamed, it is taken for a mismatch and hunted, or "
            "a mismatch is taken for it and excused."
        ),
        looks_like=(
            "At the version that drew them, all tokens agree; at the present one they differ, by more with the lag. "
            "Gone at lag 0 and at lr = 0."
        ),
        inject="Weights change while tokens are drawn, and the trainer scores all of them with its present ones.",
        mend="Bound it for every token, log it, and correct for it as a stage of its own.",
        setting=(
            "nothing to mend; the bound is `pipeline.max_lag` (Lockstep), `max_off_policy_steps` (prime-rl), "
            "`max_trajectory_age_steps` (NeMo-RL)"
        ),
        source="PipelineRL, by design",
        hard=False,
    ),
    Fault(
        code="OBJ04",
        title="One batch served twice",
        what="A loader, a retry or a resumed run hands the trainer samples that it has already trained on.",
        why_bad=(
            "The second step is off-policy by design of nobody. Where `old` logprobs are computed anew, the ratio "
            "starts at 1 again and the clip that should stop it never fires."
        ),
        looks_like=(
            "Ids or contents, logprobs included, that an earlier batch had. The sampler's KL grows with every "
            "repetition, while ratio and clip rate against recomputed logprobs stay at 1 and 0."
        ),
        inject="The engine's samples of the step before are handed out once more.",
        mend="Consume by id, once, and record what was consumed in the checkpoint.",
        setting="refuse a rollout id that an earlier step has used; save the loader's position with the checkpoint",
        source="probe-the-harness",
    ),
    Fault(
        code="OBJ05",
        title="The reference's logprobs are the sampler's",
        what=(
            "The KL term needs logprobs of a frozen reference policy. None is configured or reached, and the sampler's "
            "stand in their place without a word."
        ),
        why_bad="The term that should hold the policy near its start holds it near its last step, which it always is.",
        looks_like=(
            "Reference logprobs with the bits of the sampler's, at every token, while the policy is many steps old. "
            "The reported KL stays near 0 however far the policy has moved."
        ),
        inject="Each sample's reference logprobs are replaced by the sampler's.",
        mend="Refuse a run whose KL coefficient is not 0 and that has no reference.",
        setting=(
            "a reference that is reached, or a KL coefficient of 0 (`beta=0.0` in TRL, `use_kl_loss=False` in verl)"
        ),
        source="PipelineRL #62; PipelineRL #131; SkyRL #1263",
    ),
    Fault(
        code="OBJ06",
        title="A correction hides a fault above it",
        what=(
            "The engine reports something wrong (any of the above). A correction, truncated weights or logprobs that "
            "the trainer computes anew, makes the metrics look healthy."
        ),
        why_bad=(
            "The samples are still from the wrong policy, and the correction pays for it with effective sample size. "
            "When it is removed or the fault grows, nobody remembers why."
        ),
        looks_like=(
            "Reported ratio and KL are those of the trainer against itself, near 1 and 0; recomputed from the logprobs "
            "that came with the tokens they are not. ESS falls, or many tokens are cut."
        ),
        inject="The engine reports raw logprobs (SEM01), and the step's metrics start from the trainer's own.",
        mend="Parity first: measure without the correction, mend what shows, and correct only for what is left.",
        setting=(
            "`vllm_importance_sampling_correction=False` (TRL) until raw parity holds; log raw metrics beside corrected"
        ),
        source="vLLM V0 to V1: Correctness Before Corrections in RL; NeMo-RL #4243",
    ),
)

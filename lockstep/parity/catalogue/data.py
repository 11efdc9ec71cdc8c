"""DAT: the two sides do not speak of the same tokens.

In: nothing of ours but the noun. Out: `FAULTS`, in code order. A log ratio is trainer - sampler.
"""

from __future__ import annotations

from lockstep.parity.fault import Fault

FAULTS: tuple[Fault, ...] = (
    Fault(
        code="DAT01",
        title="Logprobs shifted by one token",
        what=(
            "One side's series is one place to the left or right of the other's: a row decides the next token, and the "
            "shift by one was made twice, or not at all."
        ),
        why_bad="Every ratio compares a token with its neighbour. Training goes on, with a gradient of noise.",
        looks_like=(
            "All samples differ, from the first token on, by whole nats and at lr = 0 as well. The series correlate "
            "best at lag 1 or -1, where they agree up to the noise floor. One report: an importance ratio near 3 at "
            "the start."
        ),
        inject="The sampler's series is rolled by one token on its way to the trainer.",
        mend="Shift in one place only, and let everything else index logprobs by the token that they belong to.",
        setting="token t after a prompt of P is decided by row P + t - 1: one shift, in the trainer's batch",
        source="ms-swift #8196; ms-swift #8427",
    ),
    Fault(
        code="DAT02",
        title="Decoded and encoded again: other tokens",
        what=(
            "The completion travels as text and is tokenised anew. Decoding and encoding is not the identity: a word "
            "that was drawn as two tokens comes back as one."
        ),
        why_bad=(
            "The trainer scores tokens that were never drawn. In conversations and tool calls this happens at every "
            "turn, and rarely drawn splits get the largest gradients."
        ),
        looks_like=(
            "The number of tokens differs from the number of logprobs in some samples; where by chance it does not, "
            "log ratios of many nats begin at the first changed token. KL spikes in multi-turn tasks only. The ids "
            "that the engine drew are not those that the trainer has, though both decode to one text."
        ),
        inject="Two neighbouring tokens of a completion become another one that stands for the same text.",
        mend=(
            "Token ids in, token ids out: encode once, append the drawn ids, never encode the whole conversation again."
        ),
        setting=(
            "`return_token_ids=true` and prompts as token ids (vLLM); "
            "`actor_rollout_ref.rollout.skip_tokenizer_init=True` in verl"
        ),
        source="TRL #5224; TRL #5242; rLLM #272; slime #117; verl #6719",
    ),
    Fault(
        code="DAT03",
        title="An end token that nobody drew",
        what=(
            "The client appends the end-of-sequence token to completions that lack it (cut off by length or by a stop "
            "string), and has no logprob for it."
        ),
        why_bad=(
            "The policy is trained on a decision it did not make, mostly to stop where it was cut off. The missing "
            "logprob is filled in with something (SEM08), or moves the others (DAT01)."
        ),
        looks_like=(
            "One token more than logprobs, at the end, and an end token although the finish reason is `length`. All "
            "tokens before it agree."
        ),
        inject="Completions that ended by length get the end token appended after they were drawn.",
        mend="Train on the ids that the engine returned. If an end token must be there, mask it out of the loss.",
        setting="`return_token_ids=true` (vLLM), and a loss mask of 0 on anything that the client appended",
        source="open-instruct #1041; SkyRL #758",
    ),
    Fault(
        code="DAT04",
        title="Rows of two samples swapped",
        what="Logprobs (or rewards) of one sample are paired with the tokens of another.",
        why_bad=(
            "Credit goes to the wrong completion, mostly within one group, where advantages have opposite signs: "
            "learning is undone instead of slowed."
        ),
        looks_like=(
            "A few samples differ by nats in every token, at lr = 0 too; all others agree. Matched against all tokens "
            "of the batch, each of the series is another sample's, exactly."
        ),
        inject="The sampler's series of two samples change places on their way to the trainer.",
        mend="Key what comes back by request and sample id, never by the order in which requests ended.",
        setting=(
            "match results by request id (vLLM: `RequestOutput.request_id`, `CompletionOutput.index`), not by order"
        ),
        source="open-instruct #1473",
    ),
    Fault(
        code="DAT05",
        title="A token lost where a request resumed",
        what=(
            "A request is paused for new weights and goes on; the first token after the pause is not handed out, or "
            "its logprob is not."
        ),
        why_bad=(
            "Everything behind the gap stands one place too early: the trainer conditions on a history that did not "
            "happen, for the rest of the sample."
        ),
        looks_like=(
            "Samples that an update interrupted, only. They agree up to where their weight version changes, differ "
            "from there on, and agree again at lag 1. One logprob more, or one less, than tokens."
        ),
        inject="Of samples that carry two weight versions, the first token of the second is left out.",
        mend=(
            "Compare counts of tokens, logprobs and versions after every resume, and refuse the sample if they differ."
        ),
        setting=(
            "take final outputs (vLLM: `output_kind=FINAL_ONLY`), not a sum of deltas across `/pause` and `/resume`"
        ),
        source="vLLM #42043",
    ),
    Fault(
        code="DAT06",
        title="The chat template is rendered differently",
        what=(
            "Engine and trainer make the prompt from the same messages, with another template, another system line, a "
            "second start token or no generation prompt."
        ),
        why_bad=(
            "All completions are scored after a prompt that they do not follow. The mismatch looks like bad numerics."
        ),
        looks_like=(
            "Every sample differs, from its first token on, at every step alike and at lr = 0 too. Lengths or ids of "
            "the prompts differ between the sides. Scored after the engine's own prompt, all of the mismatch goes "
            "away."
        ),
        inject="The prompt that the engine ran has a token more or less than the one that the trainer is given.",
        mend="Render once, send token ids, and record the ids that the engine says it had.",
        setting=(
            "send prompts as token ids; or the same `chat_template`, `add_generation_prompt`, "
            "`add_special_tokens=false`"
        ),
        source="open-instruct #1899; verl #6719; several others",
    ),
    Fault(
        code="DAT07",
        title="Replicas share a seed",
        what=(
            "Engine replicas start with one seed and get requests in one order, so that they draw the same numbers "
            "and, for the same prompt, the same completions."
        ),
        why_bad=(
            "A group of eight is a group of two. Advantages are computed over copies, exploration collapses, and the "
            "batch is smaller than anybody believes."
        ),
        looks_like=(
            "Ratios, KL and clip rate are perfect. Identical completions of one prompt, logprobs included, in more "
            "than one request, far more often than their probability allows; reward spread within groups falls."
        ),
        inject="Every second request gets the random numbers of the one before it.",
        mend="A seed for each replica, or better one for each request and sample, so that replicas cannot matter.",
        setting="`seed` + replica rank (vLLM; verl: `actor_rollout_ref.rollout.seed`), or a `seed` in each request",
        source="verl #5179; verl #5181",
        hard=False,
    ),
    Fault(
        code="DAT08",
        title="Packed sequences see one another",
        what=(
            "The trainer packs several sequences in a row of tokens, and attention crosses their boundary: positions "
            "start anew, the mask does not, or neither does."
        ),
        why_bad=(
            "The trainer's logprobs depend on who happens to share a pack. The gradient teaches the model to use text "
            "that it will never see."
        ),
        looks_like=(
            "The first sequence of every pack agrees; later ones differ, most at their first tokens. Other packing, "
            "other numbers. The trainer is the side that deviates."
        ),
        inject="The trainer scores a sample behind the tokens of the one before it, which it can see.",
        mend="Give the attention kernel the lengths of the sequences; where it cannot take them, do not pack.",
        setting=(
            "boundaries from sequence lengths (`cu_seqlens`); or no packing "
            "(`actor_rollout_ref.model.use_remove_padding=False` in verl)"
        ),
        source="prime-rl #2944; prime-rl #3032",
    ),
)

"""Which values the keys of an experiment can have.

They are checked when a run is planned, before anything is read or trained: a
value that cannot be meant would else train to its end, or stop hours later.
"""

import math

from emoq_modules.errors import ConfigurationError
from emoq_modules.evaluation.metrics import MEASURES

# Text that is taken as it is written on a command line, whatever it would be in
# YAML; of the others null is none.
LITERAL = frozenset(
    "data_folder results_folder output_folder manifest_folder data_root corpus "
    "variant audio_source table transcribe".split()
)
LITERAL_OR_NULL = frozenset(
    "feature_store fusion_weights text_encoder llm llm_tokenizer".split()
)
# Of these a model is built, or a table made, by what is not text.
BUILT = frozenset("audio_source text_encoder llm llm_tokenizer table".split())
# Schedules that take a number of steps and of those to warm up, and no more.
_SCHEDULES = (
    "linear cosine cosine_with_restarts polynomial constant "
    "constant_with_warmup inverse_sqrt"
).split()


def _whole(low, high=math.inf):
    return (
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number, {low} or more"
        + (f", and {high} at most" if high < math.inf else ""),
    )


def _number(interval):
    """Any in an interval, such as ``[0, 1)``, which leaves 1 out."""
    low, high = map(float, interval[1:-1].split(","))
    ends = {low} if interval[0] == "[" else set()
    ends |= {high} if interval[-1] == "]" else set()

    def fits(value):
        is_number = type(value) in (int, float) and math.isfinite(value)
        return is_number and (low < value < high or value in ends)

    return fits, f"a number in {interval}"


def _one_of(*words):
    return lambda value: value in words, f"one of {', '.join(words)}"


def _or_null(rule):
    fits, what = rule
    return lambda value: value is None or fits(value), f"{what}; or null"


_FLAG = lambda value: type(value) is bool, "True or False"
_TEXT = lambda value: isinstance(value, str) and value.strip(), "text"
_PRECISION = _one_of("fp32", "bf16", "fp16")
_WEIGHTINGS = "all_one max_one mean_one sum_one effective_number".split()

# A rule, and the keys that it is for.
_RULES = (
    (_TEXT, "corpus variant results_folder"),
    (_whole(0, 2**32 - 1), "seed split_seed"),
    (_whole(0), "context_turns num_queries queue_size row_tokens"),
    (_whole(0), "num_workers cross_attention_every"),
    (_whole(1), "number_of_epochs audio_dim pooling_heads batch_size"),
    (_whole(1), "patience grad_accumulation_factor class_group lora_rank"),
    (_whole(1), "max_text_tokens max_context_tokens"),
    (_or_null(_whole(1)), "embedding_dim"),
    (_number("[0, inf)"), "gamma balance weight_decay ckpt_interval_minutes"),
    (_number("[0, inf)"), "lr lr_fusion lr_head lr_projector lr_scale lr_lora"),
    (_number("[0, 1]"), "text_dropout audio_dropout warmup_ratio"),
    (_number("[0, 1)"), "lora_dropout class_weights_beta"),
    (_or_null(_number("[0, 1)")), "fusion_dropout"),
    (_number("(0, inf)"), "temperature max_grad_norm lora_alpha word_weight"),
    (_number("(0, inf)"), "max_utterance_s"),
    (_whole(1), "min_utterances"),
    (_FLAG, "without_clips frame_norm contrast_across_ranks all_queries"),
    (_FLAG, "gradient_checkpointing check_llm shard_llm speaker_in_prompt"),
    (_PRECISION, "audio_precision precision eval_precision"),
    (_one_of("fp16", "fp32"), "store_precision"),
    (_one_of(*_WEIGHTINGS), "class_weighting"),
    (_one_of("float32", "bfloat16", "float16"), "llm_dtype"),
    (_or_null(_one_of("nf4")), "llm_quantization"),
    (_one_of(*MEASURES, "loss", "last"), "selection_metric"),
    (_one_of(*_SCHEDULES), "scheduler"),
)
_RULE_OF = {key: rule for rule, keys in _RULES for key in keys.split()}


def check_ranges(hparams):
    """Refuses plain values that cannot be meant, all of them in one line.

    Keys that are not known here, as those of presets, can have any.
    """
    faults = []
    for key, value in hparams.items():
        fits, what = _RULE_OF.get(key, (None, None))
        if fits and not fits(value):
            faults.append(f"{key} is {value!r}; it has to be {what}")
    if faults:
        raise ConfigurationError(f"{'. '.join(faults)}.")

"""Which of our files goes where upstream: the one place to change.

Modules keep their text but for the names of what they import; what is written
for upstream alone lies in ``files/``.
"""

# The oldest version whose layout this table fits.
MINIMUM_VERSION = (1, 1, 0)

EMOQ = "speechbrain.integrations.huggingface.emoq"

# Our modules and those they become. The first part needs torch alone.
LOSSES = {
    "emoq_modules.losses": "speechbrain.nnet.loss.mal_loss",
    "emoq_modules.pooling": "speechbrain.nnet.attentive_pooling",
    "emoq_modules.metrics": "speechbrain.utils.emotion_stats",
    "emoq_modules.sampler": "speechbrain.dataio.class_group_sampler",
    "test_losses": "tests.unittests.test_mal_loss",
    "test_metrics": "tests.unittests.test_emotion_stats",
    "test_sampler": "tests.unittests.test_class_group_sampler",
}
MODULES = {
    "emoq_modules.audio_files": f"{EMOQ}.audio_files",
    "emoq_modules.backbones": f"{EMOQ}.backbones",
    "emoq_modules.offline": f"{EMOQ}.small_backbones",
    "emoq_modules.roberta_weights": f"{EMOQ}.roberta_weights",
    "emoq_modules.qformer": f"{EMOQ}.qformer",
    "emoq_modules.packing": f"{EMOQ}.packing",
    "emoq_modules.prompt": f"{EMOQ}.prompt",
    "emoq_modules.quantization": f"{EMOQ}.quantization",
    "emoq_modules.llm": f"{EMOQ}.llm",
    "emoq_modules.decoder": f"{EMOQ}.decoder",
    "emoq_modules.audio_encoder": f"{EMOQ}.audio_encoder",
    "emoq_modules.fbank": f"{EMOQ}.fbank",
    "test_qformer": "speechbrain.integrations.tests.test_emoq_qformer",
    "test_decoder": "speechbrain.integrations.tests.test_emoq_decoder",
    "test_packing": "speechbrain.integrations.tests.test_emoq_packing",
    "test_audio_encoder": "speechbrain.integrations.tests.test_emoq_encoders",
    "test_fbank": "speechbrain.integrations.tests.test_emoq_fbank",
}
TRAINING = {
    "emoq_modules.ranks": f"{EMOQ}.ranks",
    "emoq_modules.sharding": f"{EMOQ}.sharding",
    "emoq_modules.shared_evaluation": f"{EMOQ}.shared_evaluation",
    "emoq_modules.digest_table": f"{EMOQ}.digest_table",
    "emoq_modules.audio_digests": f"{EMOQ}.audio_digests",
    "emoq_modules.manifest": f"{EMOQ}.manifest",
    "emoq_modules.manifest_rows": f"{EMOQ}.manifest_rows",
    "emoq_modules.manifest_reader": f"{EMOQ}.manifest_reader",
    "emoq_modules.corpus": f"{EMOQ}.corpus",
    "emoq_modules.clip_store": f"{EMOQ}.clip_store",
    "emoq_modules.dataio": f"{EMOQ}.dataio",
    "emoq_modules.checkpoints": f"{EMOQ}.checkpoints",
    "emoq_modules.feature_store": f"{EMOQ}.feature_store",
    "emoq_modules.feature_extraction": f"{EMOQ}.feature_extraction",
    "emoq_modules.train_loggers": f"{EMOQ}.train_loggers",
    "test_checkpoints": "speechbrain.integrations.tests.test_emoq_checkpoints",
    "test_dataio": "speechbrain.integrations.tests.test_emoq_dataio",
    "test_feature_store": (
        "speechbrain.integrations.tests.test_emoq_feature_store"
    ),
}
# The prepare scripts' names without a folder: a recipe runs in its own.
# Upstream has an iemocap_prepare.py, of audio alone.
PREPARE = {
    "recipes.IEMOCAP.iemocap_prepare": "iemocap_emoq_prepare",
    "recipes.MELD.meld_prepare": "meld_prepare",
}
# Where ``train.py`` imports these, one by the other, their own text stands:
# upstream's recipes have their Brain in the script.
INLINED = ("emoq_modules.stages", "emoq_modules.brain")

# Who upstream's headers are to name.
AUTHORS = "The EmoQ contributors, 2026"

# Names of ours that stand for a built-in one there.
RENAMED = {"ConfigurationError": "ValueError"}

# What a module says of our project, and what it says there.
REWORDED = {
    "emoq_modules.backbones": {
        "; hparams/presets/offline.yaml needs no download at all": "",
    },
    "recipes.IEMOCAP.iemocap_prepare": {
        "python recipes/IEMOCAP/iemocap_prepare.py": (
            "python iemocap_emoq_prepare.py"
        ),
    },
    "recipes.MELD.meld_prepare": {
        "python recipes/MELD/meld_prepare.py": "python meld_prepare.py",
    },
}

# Tests, and what they alone use, that need what stays here: our experiments,
# or real data.
LEFT_OUT_TESTS = {
    "test_losses": {
        "ABLATIONS",
        "test_presets_leave_of_the_loss_what_table_5_names",
    },
    "test_fbank": {
        "test_fbank_values_of_real_speech_are_around_one",
    },
}

# Keys of an experiment that the recipes' script has no use for.
LEFT_OUT_KEYS = {"brain"}

# Experiment and the presets laid over it, for each YAML.
RECIPES = {
    "IEMOCAP": {
        "prepare": "recipes.IEMOCAP.iemocap_prepare",
        "options": "--data_folder /path/to/IEMOCAP_full_release",
        "requirements": (),
        "presets": {
            "iemocap4": "recipes/IEMOCAP/iemocap4.yaml",
            "iemocap4_speaker": "recipes/IEMOCAP/iemocap4_speaker.yaml",
        },
    },
    "MELD": {
        "prepare": "recipes.MELD.meld_prepare",
        "options": "--data_folder /path/to/MELD.Raw",
        "requirements": ("av",),
        "presets": {
            "meld7": "recipes/MELD/meld7.yaml",
            "meld4": "recipes/MELD/meld4.yaml",
        },
    },
}
EXPERIMENTS = {
    1: "hparams/emoq_stage1.yaml",
    2: "hparams/emoq_stage2.yaml",
}
# Of setup.py, what SpeechBrain itself does not require.
REQUIREMENTS = (
    "accelerate",
    "jinja2",
    "peft",
    "safetensors",
    "tokenizers",
    "transformers",
)

# Upstream's files that the contribution rests on, besides those it extends. One
# that is no longer there was moved, and this table has to follow.
NEEDED = (
    "conftest.py",
    "speechbrain/dataio/dataset.py",
    "speechbrain/integrations/huggingface/hubert.py",
    "speechbrain/integrations/huggingface/wav2vec2.py",
    "speechbrain/integrations/huggingface/wavlm.py",
    "speechbrain/integrations/tests/test_nlp.py",
    "speechbrain/lobes/features.py",
    "speechbrain/nnet/loss/__init__.py",
    "speechbrain/utils/metric_stats.py",
    "speechbrain/utils/parameter_transfer.py",
    "speechbrain/utils/train_logger.py",
    "tests/recipes/IEMOCAP.csv",
    "tests/samples/annotation/ASR_dev.json",
    "tests/samples/annotation/ASR_train.json",
    "tests/unittests/test_losses.py",
    "tests/utils/recipe_tests.py",
)

# A correction of what upstream has, by itself on branch develop. The diff lies
# in ``files/``, and so does what tests it. A file that upstream has twice
# becomes a link to the one that is corrected, as in its other recipes.
PATCH = {
    "branch": "iemocap-prepare",
    "diff": "iemocap_prepare.patch",
    "tests": {
        "test_iemocap_prepare.py": "tests/unittests/test_iemocap_prepare.py"
    },
    "links": {
        "recipes/IEMOCAP/emotion_recognition/iemocap_prepare.py": (
            "../iemocap_prepare.py"
        ),
    },
    "message": """\
Correct the preparation of IEMOCAP, and report unweighted accuracy

- The speaker was read from a fixed character of the utterance's id, so that
  dialogues with longer names, such as Ses03M_impro05a, counted for the wrong
  speaker. It is the letter in the last part of the id.
- Manifests were kept when the fold, the seed or the data folder had changed,
  and so were checkpoints of the other fold. Now they are kept for the very same
  settings alone, and refused else, with what to do.
- Random splits depended on the order in which the file system lists a folder.
- Durations came from decoding every recording, and took 16 kHz for granted.
  They come from the headers.
- Files that macOS leaves beside the others ("._Ses...") are passed over.
- Manifests have the speaker (spk_id) and the transcript (words) too.
- Beside the error rate, which a frequent class dominates, both recipes report
  unweighted accuracy, the mean over the classes.

Random splits, the default, are others than before: published results are of
the splits of their time, and a run goes on with its own manifests by
--skip_prep=True. The recipe's second copy of the script becomes a link to the
first, as in other recipes.

Each has a test that fails without this change.
""",
}

# One branch and commit each, in the order to review them.
SERIES = {
    "emoq-1-losses": """\
Add supervised contrastive, focal and MAL losses, and emotion metrics

SupConLoss, FocalLoss and their weighted sum MALLoss, AttentivePooling that
leaves padding out, ClassGroupSampler for contrastive batches, and
EmotionStats: weighted and unweighted accuracy, weighted F1, confusion. They
need nothing that SpeechBrain does not require already.
""",
    "emoq-2-modules": """\
Add the EmoQ-Former and the soft prompt decoder

EmoQFormer pools the frames of any encoder together with the transcript;
SoftPromptDecoder has any causal language model with LoRA answer with one of
the labels, from an embedding and a transcript. They need transformers and
peft, and are in the Hugging Face integration for that.
""",
    "emoq-3-training": """\
Add what EmoQ's recipes train with

Manifests that are checked and never reused for other settings, a store of a
frozen encoder's frames, checkpoints of trainable weights alone.
""",
    "emoq-4-recipes": """\
Add EmoQ's recipes for IEMOCAP and MELD

Both stages, four or seven classes, on folds that leave a session or a speaker
out (IEMOCAP) or on the corpus' own splits (MELD), with a test of each YAML.
""",
}

"""Hostile configs: config.json, modules.json and what it names, tokenizer.json."""

from checkpoints import CONFIG, D, tokenizer_file, write_dense, write_json, write_modules
from hostile import CASES, FORMAT, TOKENIZER, UNSUPPORTED, WORDS, Case, case

# ---- config.json -------------------------------------------------------------------------------------------


def config_case(name, error, match, /, **changes):
    def spoil(folder):
        write_json(folder / "config.json", {**CONFIG, **changes})

    # A config that is sound in itself is compared with the weights, and the error names a tensor.
    file = "model.safetensors" if match in {WORDS, "encoder.layer.2"} else "config.json"
    CASES[name] = Case(spoil, error, match, file)


config_case("a_vocabulary_of_10_to_12", FORMAT, "vocab_size", vocab_size=10**12)
config_case("a_vocabulary_of_two_billion", FORMAT, WORDS, vocab_size=2 * 10**9)
config_case("layers_without_end", FORMAT, "encoder.layer.2", num_hidden_layers=10**9)
config_case("heads_that_do_not_divide", FORMAT, "num_attention_heads", num_attention_heads=5)
config_case("a_negative_width", FORMAT, "hidden_size", hidden_size=-32)
config_case("no_heads", FORMAT, "num_attention_heads", num_attention_heads=0)
config_case("a_width_of_a_half", FORMAT, "hidden_size", hidden_size=32.5)
config_case("a_width_in_words", FORMAT, "hidden_size", hidden_size="32")
config_case("a_number_that_is_none", FORMAT, "line", layer_norm_eps=float("nan"))
config_case("an_infinite_number", FORMAT, "line", layer_norm_eps=float("inf"))
config_case("an_unknown_family", UNSUPPORTED, "mamba", model_type="mamba")
config_case("an_unknown_activation", UNSUPPORTED, "quick_gelu", hidden_act="quick_gelu")


@case(FORMAT, "recursion", "config.json")
def a_deep_config(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


@case(FORMAT, "expected a JSON object", "config.json")
def a_config_that_is_a_list(folder):
    write_json(folder / "config.json", [CONFIG])


# ---- modules.json ------------------------------------------------------------------------------------------


@case(FORMAT, "leads out", "modules.json")
def a_module_above_the_folder(folder):
    write_json(
        folder / "modules.json",
        [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"},
        ],
    )


@case(UNSUPPORTED, "WeightedLayerPooling", "modules.json")
def an_unknown_module(folder):
    write_modules(folder, "WeightedLayerPooling")


@case(UNSUPPORTED, "os.system", "modules.json")
def a_module_of_another_package(folder):
    write_json(folder / "modules.json", [{"type": "os.system", "path": ""}])


@case(FORMAT, "1 to 16 modules", "modules.json")
def modules_without_end(folder):
    write_modules(folder, "Pooling", *["Dense"] * 10_000)


def with_dense(folder):
    write_modules(folder, "Pooling", "Dense")
    write_json(folder / "1" / "config.json", {"pooling_mode": "mean"})
    write_dense(folder / "2", 8, D, "torch.nn.modules.activation.Tanh")


@case(FORMAT, "linear.weight", "2/model.safetensors")
def a_dense_module_that_lies(folder):
    with_dense(folder)
    write_json(folder / "2" / "config.json", {"in_features": D, "out_features": 2**31, "bias": True})


@case(FORMAT, "in_features should be 64", "2/config.json")
def a_dense_module_that_does_not_fit(folder):
    with_dense(folder)
    write_json(folder / "1" / "config.json", {"pooling_mode": ["mean", "max"]})


@case(UNSUPPORTED, "os.system", "2/config.json")
def a_dense_module_with_a_foreign_activation(folder):
    with_dense(folder)
    write_dense(folder / "2", 8, D, "os.system")


@case(FORMAT, "embedding_dimension", "1/config.json")
def a_pooling_of_another_width(folder):
    with_dense(folder)
    write_json(folder / "1" / "config.json", {"pooling_mode": "mean", "word_embedding_dimension": 10**18})


# ---- tokenizer.json ----------------------------------------------------------------------------------------


def tokenizer_case(name, match, /, *path, value):
    def spoil(folder):
        file = tokenizer_file()
        at = file
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        write_json(folder / "tokenizer.json", file)

    CASES[name] = Case(spoil, TOKENIZER, match, "tokenizer.json")


def nested(kind, key, inner, depth):
    for _ in range(depth):
        inner = {"type": kind, key: [inner]}
    return inner


BERT_STEP = {"type": "BertPreTokenizer"}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
tokenizer_case("ids_beyond_the_vocabulary", "id 99", "model", "vocab", "dog", value=99)
tokenizer_case(
    "special_ids_beyond",
    "id 4000000000",
    "post_processor",
    "special_tokens",
    "[CLS]",
    "ids",
    value=[4 * 10**9],
)
tokenizer_case("types_beyond", "type id 2", "post_processor", "single", 1, "Sequence", "type_id", value=2)
tokenizer_case(
    "special_tokens_without_end",
    "max_length",
    "post_processor",
    "special_tokens",
    "[CLS]",
    "ids",
    value=[2] * 500,
)
tokenizer_case("words_without_end", "max_input_chars", "model", "max_input_chars_per_word", value=10**12)
tokenizer_case(
    "steps_in_steps", "nested", "pre_tokenizer", value=nested("Sequence", "pretokenizers", BERT_STEP, 40)
)
tokenizer_case(
    "templates_in_templates", "nested", "post_processor", value=nested("Sequence", "processors", None, 40)
)
tokenizer_case(
    "text_that_explodes", "normalizer", "normalizer", value={"type": "Sequence", "normalizers": [DOUBLE] * 60}
)
tokenizer_case("an_unknown_model", "tokenizer.json", "model", "type", value="Mystery")
tokenizer_case("a_version_to_come", "version", "version", value="9.0")
tokenizer_case(
    "a_charsmap_of_garbage",
    "tokenizer.json",
    "normalizer",
    value={"type": "Precompiled", "precompiled_charsmap": "/////w=="},
)


@case(TOKENIZER, "tokenizer.json", "tokenizer.json")
def a_tokenizer_of_garbage(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe" * 1000)


@case(TOKENIZER, "nested", "tokenizer.json")
def a_deep_tokenizer(folder):
    (folder / "tokenizer.json").write_text("[" * 1_000_000)

"""Tokens that a text never uses, left out of a model."""

import copy
import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import abridged
import teachers
from abridged.core.errors import AbridgedError
from abridged.models.load import load_dense, load_tokenizer
from abridged.vocabulary import keep_tokens, trim_tokenizer

TEXTS = ["the cat sat on the mat", "a dog sat near the door, nearly asleep", "cats & dogs, doors & mats"]
UNSEEN = ["a sad dentist", "Zoë eats rats!"]


def read(tokenizer, texts):
    return [tokenizer(text)["input_ids"] for text in texts]


def byte_level():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*TEXTS, "a sad dentist eats eaten"] * 2,
        trainers.BpeTrainer(
            vocab_size=360, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return bpe


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(
        [*TEXTS, "the sad dentists eat eaten"] * 2,
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials, show_progress=False),
    )
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def unigram():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        [*TEXTS, "the sad dentists eat eaten"] * 2,
        trainers.UnigramTrainer(vocab_size=90, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False),
    )
    return made


@pytest.mark.parametrize("make", [byte_level, word_piece, unigram])
def test_texts_of_what_is_kept_are_read_as_before(tmp_path, make):
    before = PreTrainedTokenizerFast(tokenizer_object=make())
    before.save_pretrained(tmp_path)
    ids = read(before, TEXTS)
    kept = trim_tokenizer(tmp_path, {i for text in ids for i in text})
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert len(after) == len(kept) < len(before)
    assert [[kept[i] for i in text] for text in read(after, TEXTS)] == ids
    assert after.convert_ids_to_tokens(range(len(after))) == before.convert_ids_to_tokens(kept)
    assert after.all_special_tokens == before.all_special_tokens


def test_an_unseen_word_is_spelled(tmp_path):
    before = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    before.save_pretrained(tmp_path)
    trim_tokenizer(tmp_path, {i for text in read(before, TEXTS) for i in text})
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert [after.decode(ids, skip_special_tokens=True) for ids in read(after, UNSEEN)] == UNSEEN
    assert len(after(UNSEEN[0])["input_ids"]) > len(before(UNSEEN[0])["input_ids"])


def test_a_tokenizer_that_cannot_be_changed_is_refused(tmp_path):
    with pytest.raises(AbridgedError, match=r"has no tokenizer\.json"):
        trim_tokenizer(tmp_path, {1})
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(AbridgedError, match="type WordLevel"):
        trim_tokenizer(tmp_path, {1})


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NAMED = {"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2),
        LlamaConfig(**SMALL, tie_word_embeddings=False),
        BertConfig(**SMALL),
        RobertaConfig(**SMALL),
        BartConfig(**NAMED, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_the_logits_of_what_is_kept_do_not_change(config):
    """A tied head with a bias and without, one that is not tied, and BART with a bias that belongs to no layer."""
    kinds = {"bert": AutoModelForMaskedLM, "roberta": AutoModelForMaskedLM, "bart": AutoModelForSeq2SeqLM}
    torch.manual_seed(0)
    model = kinds.get(config.model_type, AutoModelForCausalLM).from_config(config).eval()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    biases = [tensor for name, tensor in tensors.items() if "bias" in name and 40 in tensor.shape]
    for bias in biases:
        torch.nn.init.normal_(bias)
    assert len(biases) == (config.model_type in ("bert", "roberta", "bart"))
    kept = [0, 1, 2, *range(5, 40, 3)]
    ids = torch.randint(3, len(kept), (2, 8))
    with torch.no_grad():
        expected = model(torch.tensor(kept)[ids]).logits[..., kept]
        keep_tokens(model, kept)
        found = model(ids).logits
    torch.testing.assert_close(found, expected)
    assert model.config.vocab_size == found.shape[-1] == len(kept)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (config.model_type != "llama")


def test_ids_in_the_config_follow(bart):
    model = type(bart[0])(copy.deepcopy(bart[0].config)).eval()
    model.config.pad_token_id, model.config.eos_token_id = 7, [9, 11]
    model.generation_config.forced_eos_token_id = 11
    model.generation_config.suppress_tokens, model.generation_config.begin_suppress_tokens = [30, 9, 11], [7]
    keep_tokens(model, [0, 1, 2, 7, 9, 11])
    assert (model.config.pad_token_id, model.config.eos_token_id) == (3, [4, 5])
    assert model.generation_config.forced_eos_token_id == 5
    assert model.generation_config.suppress_tokens == [4, 5]  # 30 is gone
    assert model.generation_config.begin_suppress_tokens == [3]


@pytest.fixture
def classifier(tmp_path):
    """A BERT that labels texts, whose vocabulary has words that no text has, and a .tsv of texts."""
    folder = tmp_path / "classifier"
    folder.mkdir()
    words = [
        "[PAD]",
        "[unused0]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "never",
        "good",
        "bad",
        "film",
        *"abdfgilmo",
        "##s",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    labels = {"id2label": {0: "0", 1: "1"}, "label2id": {"0": 0, "1": 1}}
    config = BertConfig(vocab_size=len(words) + 3, max_position_embeddings=16, **sizes, **labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [f"{'good' if i % 2 else 'bad'} film{'s' * (i % 3 == 0)}\t{i % 2}" for i in range(40)]
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *rows]))
    return folder, tmp_path / "data.tsv"


def test_a_trimmed_model_answers_as_before_and_is_a_teacher(classifier, tmp_path, recipe_file):
    source, data = classifier
    record = abridged.trim(source, data, tmp_path / "small")
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", *"abdfgilmo", "##s"]
    small = load_dense(tmp_path / "small")
    tokenizer = load_tokenizer(tmp_path / "small", small)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == entries
    assert record["vocabulary"] == {"before": 23, "after": len(entries)}
    assert record["parameters"]["before"] - record["parameters"]["after"] == 16 * (23 - len(entries))
    assert json.loads((tmp_path / "small" / "abridged.json").read_text()) == record
    assert abridged.evaluate(tmp_path / "small", data) == abridged.evaluate(source, data)
    objectives = {"logits": {"weight": 1.0}}
    quantize = {"activations": {"bits": 8, "quantizer": "dynamic"}}
    recipe = recipe_file(steps=2, objectives=objectives, quantize=quantize)
    abridged.compress(tmp_path / "small", recipe, data, tmp_path / "student")
    assert abridged.evaluate(tmp_path / "student", data)["texts"] > 0


def test_rare_tokens_go_too(teacher, text, tmp_path):
    all_, often = (abridged.trim(teacher, text, tmp_path / f"{n}", min_count=n)["vocabulary"]["after"] for n in (1, 40))
    assert often < all_ <= 300
    with pytest.raises(AbridgedError, match="exists already"):
        abridged.trim(teacher, text, tmp_path / "1")
    assert load_dense(tmp_path / "40").config.n_positions == teachers.CONTEXT

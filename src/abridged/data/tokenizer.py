"""Learns a byte-level BPE tokenizer for a model that is trained from scratch."""

from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
#: BART's and RoBERTa's, in the order of their ids.
ENCODER_TOKENS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def learn_tokenizer(text: str, vocab_size: int, context: int, encoder: bool = False) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE of `vocab_size` entries from `text`.

    Args:
        encoder: special tokens as BART's, around every text; else GPT-2's one end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    specials = list(ENCODER_TOKENS.values()) if encoder else [END_OF_TEXT]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(StringIO(text), trainer)
    common = {"tokenizer_object": bpe, "model_max_length": context, "clean_up_tokenization_spaces": False}
    if encoder:
        bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), False, add_prefix_space=False)
        return PreTrainedTokenizerFast(**common, **{f"{kind}_token": token for kind, token in ENCODER_TOKENS.items()})
    return GPT2TokenizerFast(**common, unk_token=END_OF_TEXT, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)

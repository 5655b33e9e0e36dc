"""Tiny tokenizers of the two kinds that matter: whole words, and bytes merged into pieces."""

import itertools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from circuitdiff.vocabulary import LABELS

FRAME = ("The", "the", "is", "in", "Box", "contains", ",", ".", "A")


def word_level(words, ending=""):
    """One token per word or punctuation mark, `<s>` first; `ending` as in `</s>` if one comes last."""
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *words])
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {ending}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def byte_pairs(objects, trim_offsets):
    """Byte pairs learned from sentences with `objects`: these are one token each, other words are split."""
    filled = zip(objects, itertools.cycle(LABELS), strict=False)
    sentences = [f"The {o} is in Box {x}, the {o} is in Box {x}. Box {x} contains the {o}" for o, x in filled]
    return learned_byte_pairs(sentences, trim_offsets)


def learned_byte_pairs(sentences, trim_offsets):
    """Byte pairs learned from the sentences, whose frequent words become one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")

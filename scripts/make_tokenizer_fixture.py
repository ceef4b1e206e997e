"""Makes tests/fixtures/tokenizer: small vocabularies, of bytes and of characters that fall back on bytes, that Hugging Face's `tokenizers` learns from tests/fixtures/text.txt,
as it writes them, and the ids it gives for strings that are hard to cut.

    python3 scripts/make_tokenizer_fixture.py        needs tokenizers
"""

import json
from pathlib import Path

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
STRINGS = [
    "", " ", "  ", "\n", "\r\n", " \n", "\n ", "\t\t", "a", " a", "  a", "a ", "a  ", "a  b", "a\n\nb", "a \n b", "a\r\n\r\nb",
    "Hello, World!", "I'll we've they're it's I'm don't he'd", "I'LL WE'VE IT'S", "''s '' 's", "x'y", "'", "''", "it'\u017f",
    "12345 67 8", " 1234", "1a2b3c", "\u00bd\u2167\u0663", "3.14159e-10", "a_b-c+d=e;", "!!!???...", " !!", "!\n\n\nx", "(foo)bar", "$x",
    "caf\u00e9 na\u00efve \u0153uvre", "e\u0301\u0327", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0", "\u4e2d\u65872024\u5e74", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", "\u0928\u092e\u0938\u094d\u0924\u0947", "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8", "\U0001f600\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200b\u00a0\u3000\u2028x",
    "\x00\x01\x1c\x1f\x7f", "\ufffd\ufffd", "\U0010ffff", "\u01c5 \u02b0 \u2160", "fn main() {\n    let x = 42;\n\n}\n", "a" * 200,
    " " * 50 + "x", "\n" * 30 + "x", "ab" * 100, "1" * 20, "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|",
]

# What is hard about blanks: where they are put, where they are not, and what stands for one.
BLANKS = [
    "\u2581", "\u2581a", " \u2581 a", "a\u2581b", "<s>", "<s>a", "<s> a", "a<s>b", " <s> ", "a</s> b</s>", "<s><s>", "<unk>", "<0x41>",
    "x<|a b|>y", "<|a b|>", " <|a b|>", "x <|a b|> y", "<|a b|><|a b|>", "<|a\u2581b|>", "<s><|a b|>", "the the the", "\n the\n the",
]


def learn(folder, pre_tokenizer, vocabulary, text):
    """A vocabulary of bytes and merges, learned without special tokens; one is added on top."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=0, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", normalized=False, special=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    strings = STRINGS + [line for line in text.splitlines(keepends=True)[:40]]
    rows = [{"text": text, "ids": plain.encode(text).ids, "with_special": tokenizer.encode(text).ids} for text in strings]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "expected.json").write_text(json.dumps(rows) + "\n")


def learn_characters(folder, cut, normalizer, pre_tokenizer, text):
    """A vocabulary of characters and merges with bytes to fall back on, as converters of SentencePiece's write it. With
    `cut`, merges are learned inside words, and every way to put a token together is one, as in files converted from
    SentencePiece's; else they reach across blanks, and each makes a token of its own."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if cut:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=480, min_frequency=0, show_progress=False, limit_alphabet=60,
                                  special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)])
    tokenizer.train_from_iterator([text[:6000]], trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in special]
    if cut:
        # Runs of blanks have one score in the files of Llama 2 and Mistral: their merges come last, by length.
        known, runs = file["model"]["vocab"], ["\u2581" * length for length in (2, 3, 4)]
        merges = [[token[:place], token[place:]] for token in ("".join(pair) for pair in file["model"]["merges"])
                  for place in range(len(token) - 1, 0, -1) if token[:place] in known and token[place:] in known]
        last = [[run[:place], run[place:]] for run in runs for place in range(1, len(run))]
        file["model"]["merges"] = merges + sorted(last, key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
        known.update({run: len(known) + place for place, run in enumerate(runs)})
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.add_tokens([AddedToken("<|a b|>", normalized=True, special=False)])
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    rows = []
    for string in STRINGS + BLANKS + [line for line in text.splitlines(keepends=True)[40:60]]:
        ids = tokenizer.encode(string).ids
        rows.append({"text": string, "ids": plain.encode(string, add_special_tokens=False).ids, "with_special": ids,
                     "decoded": tokenizer.decode(ids)})
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "expected.json").write_text(json.dumps(rows) + "\n")


def main():
    fixtures = Path(__file__).parent.parent / "tests/fixtures"
    text = (fixtures / "text.txt").read_bytes().decode()
    learn(fixtures / "tokenizer/gpt2", pre_tokenizers.ByteLevel(add_prefix_space=False), 512, text)
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learn(fixtures / "tokenizer/llama3", pre_tokenizers.Sequence([split, level]), 400, text)
    blanks = normalizers.Replace(" ", "\u2581")
    prepended = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks])
    learn_characters(fixtures / "tokenizer/prepended", False, prepended, None, text)
    learn_characters(fixtures / "tokenizer/prepended-words", True, prepended, None, text)
    learn_characters(fixtures / "tokenizer/replaced", True, blanks, None, text)
    for scheme in ["first", "always", "never"]:
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        learn_characters(fixtures / "tokenizer" / scheme, scheme != "always", None, metaspace, text)


main()

"""Small tokenizers of each kind and templates of each family, written from their public descriptions."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = [
    "Hello world! How are you today?",
    "naïve café 東京 🙂 hello there",
    "im_start user [/INST] <s>",
] * 4
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]  # noqa: RUF001
GEMMA = ["<start_of_turn>", "<end_of_turn>"]
MISTRAL = [
    "[INST]",
    "[/INST]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
]
LOOSE = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
SPECIALS = ["<unk>", "<s>", "</s>", *CHATML, *LLAMA3, *PHI, *DEEPSEEK, *GEMMA, *MISTRAL]


def _finished(tokenizer: Tokenizer) -> Tokenizer:
    stripping = [AddedToken(name, special=True, normalized=False, rstrip=True) for name in PHI]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIALS]
    )
    tokenizer.add_special_tokens(stripping)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in LOOSE])
    return tokenizer


def _trained(pattern: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pattern is not None))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[] if pattern is None else SPECIALS,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2's kind; its special tokens come behind the vocabulary."""
    return _finished(_trained(None))


def tekken() -> Tokenizer:
    """Special tokens first, a pattern of its own, whole words taken without merges."""
    return _finished(_trained(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+"))


def sentencepiece(*, metaspace: bool = False) -> Tokenizer:
    """Byte fallback, U+2581 for spaces; its control tokens are in the vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = [word for word, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    words += [word for word in learned if word not in words]
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [
        (word[:cut], word[cut:])
        for word in learned
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finished(tokenizer)


def unigram() -> Tokenizer:
    """A list of pieces with scores, in which control tokens are pieces too."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(0x21, 0x7F)] + [("\u2581hello", -4.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer)


def wordpiece() -> Tokenizer:
    """Pieces that go on with a word begin with ##; the decoder puts punctuation to the word before it."""
    pieces = ["[UNK]", "hello", "do", "not", "I", "##ing", "##s", "n", "'", "t", "'t", "n't", "'m"]
    pieces += ["##京", "東", "é", ".", ",", "!", "?", "##.", "'s", "'ve", "'re", "##é", "world"]
    words = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _finished(tokenizer)


def end_of_word() -> Tokenizer:
    """BPE of the first kind: the last piece of a word says so."""
    pieces = ["a</w>", "b", "c</w>", "é", "東</w>", "</w>", ".</w>", "'", "hello</w>", "he"]
    words = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(words, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    return _finished(tokenizer)


TOKENIZERS = {
    "byte-level": byte_level,
    "tekken": tekken,
    "sentencepiece": sentencepiece,
    "metaspace": lambda: sentencepiece(metaspace=True),
    "unigram": unigram,
}

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
        "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set content = system + m['content'] if loop.index0 == 0 else m['content'] %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
        " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
        "{% set content = '<|begin_of_text|>' + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = m['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "qwen-tools": (
        "{%- if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n"
        "{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
        "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% set said = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content %}"
        "{{ said }}{% for call in m.tool_calls or [] %}\n<tool_call>\n"
        '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
        "</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "deepseek": (
        "{{ '<｜begin▁of▁sentence｜>' }}{% set ns = namespace(system='') %}"  # noqa: RUF001
        "{% for m in messages if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endfor %}"
        "{{ ns.system }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"  # noqa: RUF001
        "{% elif m.role == 'assistant' %}{% set content = m.content %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"  # noqa: RUF001
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"  # noqa: RUF001
    ),
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "macro": (
        "{% macro turn(open, role, text) %}{{ open ~ role ~ '\n' ~ text[:400] | upper }}{{ '<|im_end|>' }}{% endmacro %}"
        "{% for m in messages %}{{ turn('<|im_start|>', m.role, m.content) }}\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
    ),
}
NO_SYSTEM = ("gemma",)
EOS = "</s>"
EOS_AND_BOS = {"bos_token": "<s>", "eos_token": EOS}

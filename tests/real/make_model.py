"""Write a tiny llama model with random weights as a GGUF file: `make_model.py FILE`. Needs the
package gguf.

Its responses are noise, but the server that loads it is real: it tokenizes, counts, streams and
refuses.
"""

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, FEED_FORWARD, TRAINED_CONTEXT = 64, 4, 2, 128, 8192
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "▁the",
    "▁a",
    "▁of",
    "▁and",
    "▁to",
    "▁in",
    "▁is",
    "▁it",
    "▁you",
    "▁that",
    "▁hello",
    "▁backend",
    "ing",
    "er",
]


def main(path: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(TRAINED_CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    words = _vocabulary(writer)
    random = np.random.default_rng(7)

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if name.endswith("norm.weight") else random.normal(0, 0.05, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", words, WIDTH)
    add("output_norm.weight", WIDTH)
    add("output.weight", words, WIDTH)
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{part}.weight", WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{part}.weight", FEED_FORWARD, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter) -> int:
    """Control tokens, one token per byte, letters and a few words; gives how many there are."""
    control = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    tokens = control + [f"<0x{byte:02X}>" for byte in range(256)] + letters + WORDS
    kind = gguf.TokenType
    types = [
        kind.UNKNOWN,
        *[kind.CONTROL] * 4,
        *[kind.BYTE] * 256,
        *[kind.NORMAL] * (len(letters) + len(WORDS)),
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 261 + [-10.0] * len(letters) + [-1.0] * len(WORDS))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    return len(tokens)


if __name__ == "__main__":
    main(sys.argv[1])

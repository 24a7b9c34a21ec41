# SPDX-License-Identifier: Apache-2.0
"""The miniature's tokenizer: one token per character, and one each for a blank line and for `Answer: `.

The chat template costs a prompt one token: the user's line ends with a line break, then the assistant writes.
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipe.miniature.problems import ANSWER, STEP_SEPARATOR

PAD, EOS, UNK, STEP = "<pad>", "<eos>", "<unk>", "<extra_0>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}{{- message['content'] + eos_token }}"
    "{%- else %}{{- message['content'] + '\\n' }}{%- endif %}"
    "{%- endfor %}"
)
_CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "


def build_tokenizer(max_length: int = 512) -> PreTrainedTokenizerFast:
    """Build the tokenizer; policy and PRM share it.

    Args:
        max_length: Context of the models, in tokens.

    Returns:
        The tokenizer: `<pad>`, `<eos>` and `<extra_0>` (where the PRM's scores stand) are special, any character
        outside printable ASCII becomes `<unk>`.
    """
    pieces = [PAD, EOS, UNK, STEP, STEP_SEPARATOR, ANSWER, *_CHARACTERS]
    backend = Tokenizer(models.WordLevel({piece: place for place, piece in enumerate(pieces)}, unk_token=UNK))
    pattern = Regex(rf"{ANSWER}|\n\n|[\s\S]")
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS, UNK, STEP)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer

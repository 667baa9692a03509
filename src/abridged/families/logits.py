"""What stands between a model's last hidden state and its logits, found by giving the head answers of our own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from abridged.storage.view import Logits

#: What the head is made to answer: from where a soft cap does nothing to where it does all.
_SMALL, _LARGE = 1e-3, 1e5
_TOLERANCE = 1e-4


def run_body(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """What a model gives up to its head: `last_hidden_state` and whatever options ask for.

    Of an encoder-decoder that has no module of its own for it (T5), encoder and decoder are run one after the other,
    and the fields are those of a Seq2SeqModelOutput.
    """
    if model.base_model is not model or not model.config.is_encoder_decoder:
        return model.base_model(**inputs, **options)
    from transformers.modeling_outputs import Seq2SeqModelOutput

    mask = inputs.get("attention_mask")
    read = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=mask, **options)
    written = model.get_decoder()(
        input_ids=inputs["decoder_input_ids"],
        attention_mask=inputs.get("decoder_attention_mask"),
        encoder_hidden_states=read.last_hidden_state,
        encoder_attention_mask=mask,
        **options,
    )
    return Seq2SeqModelOutput(
        last_hidden_state=written.last_hidden_state,
        decoder_hidden_states=written.hidden_states,
        decoder_attentions=written.attentions,
        cross_attentions=written.cross_attentions,
        encoder_last_hidden_state=read.last_hidden_state,
        encoder_hidden_states=read.hidden_states,
        encoder_attentions=read.attentions,
    )


def run_head_on(model: Any, inputs: dict[str, Any], chosen: Tensor, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """What a model whose head works on each token by itself says of some of them; its head runs on no others, since
    logits of a whole vocabulary for every token take more memory than the model.

    Args:
        chosen: (B, T) bool, n of them true.

    Returns:
        Logits (n, C), the last hidden states (B, T, d) of all tokens, and what the model gives besides.
    """
    last: list[Tensor] = []

    def narrow(module: Any, given: Any, output: Any) -> Any:
        last.append(output.last_hidden_state)
        output.last_hidden_state = last[0][chosen].unsqueeze(0)
        return output

    with model.base_model.register_forward_hook(narrow):
        found = model(**inputs, **options, return_dict=True)
    return found.logits[0], last[0], found


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, Tensor]) -> tuple[Logits | None, str]:
    """(how logits are made of the last hidden state, "") or (None, why not); both empty where there is no head.

    The head's input, measured against the last hidden state, gives the scale before it; the model's logits, where the
    head is made to answer known numbers, give scale and cap after it.
    """
    head = model.get_output_embeddings()
    if head is None or (model.base_model is model and not model.config.is_encoder_decoder):
        return None, ""
    seen: dict[str, Tensor] = {"hidden": run_body(model, inputs, return_dict=True).last_hidden_state}

    def answer(module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"] = given[0]
        steps = output.numel()
        grid = torch.cat([torch.linspace(-_LARGE, _LARGE, steps // 3), torch.linspace(-100, 100, steps // 3)])
        rest = torch.linspace(_SMALL / steps, _SMALL, steps - len(grid))
        seen["answer"] = torch.cat([grid, rest]).view(output.shape)
        return seen["answer"]

    with head.register_forward_hook(answer):
        logits = getattr(model(**inputs), "logits", None)
    if logits is None or "input" not in seen or logits.shape != seen["answer"].shape:
        return None, ""
    return _fit(seen, logits)


def _fit(seen: dict[str, Tensor], logits: Tensor) -> tuple[Logits | None, str]:
    hidden, given = seen["hidden"], seen["input"]
    if hidden.shape != given.shape:
        return None, ""
    before = float((given / hidden).median())
    if not torch.allclose(given, before * hidden, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None, ""  # a masked language model's transform
    x, y = seen["answer"].flatten(), logits.flatten()
    scale = float(y[-1] / x[-1])
    reach = float(y[: len(y) // 3].abs().max())
    cap = None if abs(reach - scale * _LARGE) < 1e-3 * reach else reach
    expected = scale * x if cap is None else cap * torch.tanh(scale * x / cap)
    if scale <= 0 or before <= 0 or not torch.allclose(y, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None, "logits are no scaled or capped product of the head and the last hidden state"
    return Logits(_rounded(scale), _rounded(before), None if cap is None else _rounded(cap)), ""


def _rounded(value: float) -> float:
    """Without the noise of FP32 in its last digits."""
    return float(f"{value:.6g}")

"""Sizes of the four models: tiny for tests, small for the study, released as published."""

from importlib import import_module
from typing import Any

_HOMES = {
    "vae": ("triposg_vae", "TripoSGVAE"),
    "dit": ("triposg_dit", "TripoSGDiT"),
    "denoiser": ("temporal_denoiser", "TemporalDenoiser"),
    "autoencoder": ("temporal_autoencoder", "TemporalAutoencoder"),
}


def _sizes(
    *,
    channels: int,
    tokens: int,
    frames: int,
    context_dim: int,
    width: int,
    heads: int,
    frequencies: int,
    dit_layers: int,
    encoder_layers: int,
    decoder_layers: int,
) -> dict[str, dict[str, Any]]:
    """One width and one number of heads for all four models."""
    dit = {"in_channels": channels, "num_layers": dit_layers, "num_attention_heads": heads, "width": width}
    dit["cross_attention_dim"] = context_dim
    shared = {"latent_channels": channels, "num_attention_heads": heads, "embed_frequency": frequencies}
    vae = {"num_layers_encoder": encoder_layers, "num_layers_decoder": decoder_layers, "width_encoder": width, "width_decoder": width}
    return {
        "vae": shared | vae,
        "dit": dit,
        "denoiser": dit | {"num_tokens_nominal": tokens, "temporal_context_size": frames},
        "autoencoder": shared | {"width": width, "num_layers": decoder_layers, "temporal_context_size": frames},
    }


SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": _sizes(
        channels=4,
        tokens=8,
        frames=4,
        context_dim=24,
        width=32,
        heads=2,
        frequencies=2,
        dit_layers=3,
        encoder_layers=1,
        decoder_layers=1,
    ),
    "small": _sizes(
        channels=16,
        tokens=16,
        frames=6,
        context_dim=24,
        width=96,
        heads=4,
        frequencies=4,
        dit_layers=3,
        encoder_layers=1,
        decoder_layers=2,
    ),
    "released": {"vae": {}, "dit": {}, "denoiser": {}, "autoencoder": {}},
}
"""Arguments of the models that differ from the released ones, by size and component."""


def create(component: str, size: str = "released", **overrides: Any) -> Any:
    """A model with random weights.

    Args:
        component: ``vae`` (TripoSGVAE), ``dit`` (TripoSGDiT), ``denoiser`` (TemporalDenoiser) or ``autoencoder`` (TemporalAutoencoder).
        size: ``tiny``, ``small`` or ``released``.
        overrides: arguments of the model, which win.

    Raises:
        ValueError: an unknown component or size.

    Source: ActionMesh brief, 9 (small) and 4 (released).
    """
    if component not in _HOMES:
        raise ValueError(f"component must be one of {', '.join(_HOMES)}; got {component!r}.")
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}; got {size!r}.")
    home, name = _HOMES[component]
    model = getattr(import_module(f"visiongraft.methods.action_mesh.{home}"), name)
    return model(**SIZES[size][component] | overrides)

"""Certified feature smoothing (arXiv 2601.16200): any vision encoder or vision tower, with a certificate on its features.

Base: any image encoder. Graft: Gaussian smoothing of its features with a certificate, a purifier in front of the encoder and a
smoothness mapper behind it.

    smoothed = load_smoothed(EncoderConfig(encoder="small"), SmoothingConfig(sigma=0.25))
    certificate = certify(smoothed, image, CertificateConfig(n=1000))
    print(certificate.statement())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiongraft.methods.feature_smoothing.attachment import FeatureSpec, attach, detach
    from visiongraft.methods.feature_smoothing.bounds import certified_radius, cosine_bound, deployed_bound
    from visiongraft.methods.feature_smoothing.certification import Certificate, CertificateConfig, certify
    from visiongraft.methods.feature_smoothing.confidence import lower_bound
    from visiongraft.methods.feature_smoothing.encoders import Encoder, load_encoder
    from visiongraft.methods.feature_smoothing.pipeline import EncoderConfig, ZeroShot, load_smoothed
    from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig

_HOME = {
    "FeatureSpec": "attachment",
    "attach": "attachment",
    "detach": "attachment",
    "certified_radius": "bounds",
    "cosine_bound": "bounds",
    "deployed_bound": "bounds",
    "Certificate": "certification",
    "CertificateConfig": "certification",
    "certify": "certification",
    "lower_bound": "confidence",
    "Encoder": "encoders",
    "load_encoder": "encoders",
    "EncoderConfig": "pipeline",
    "ZeroShot": "pipeline",
    "load_smoothed": "pipeline",
    "SmoothedEncoder": "smoothing",
    "SmoothingConfig": "smoothing",
}
__all__ = [
    "Certificate",
    "CertificateConfig",
    "Encoder",
    "EncoderConfig",
    "FeatureSpec",
    "SmoothedEncoder",
    "SmoothingConfig",
    "ZeroShot",
    "attach",
    "certified_radius",
    "certify",
    "cosine_bound",
    "deployed_bound",
    "detach",
    "load_encoder",
    "load_smoothed",
    "lower_bound",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value

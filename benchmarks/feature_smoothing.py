"""Speed and memory of feature smoothing, each beside its peer or limit in the same process. Prints ratios; asserts nothing.

python benchmarks/feature_smoothing.py            # CPU, the bundled small encoder
python benchmarks/feature_smoothing.py --real     # CLIP ViT-L/14 and the ImageNet diffusion U-Net, random weights (needs a GPU)
"""

import argparse
import resource
import statistics
import time

import numpy as np
import torch

from visiongraft.methods.feature_smoothing import CertificateConfig, EncoderConfig, SmoothedEncoder, SmoothingConfig, load_smoothed
from visiongraft.methods.feature_smoothing.bounds import BOUNDS, certified_radius, cosine_bound
from visiongraft.methods.feature_smoothing.certification import certificate, image_generator, sample_scores
from visiongraft.methods.feature_smoothing.smoothing import draw_noise
from visiongraft.worlds.captioned import held_out_images


def seconds(call, repeats: int = 5) -> float:
    """Median wall time after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def naive_score(smoothed: SmoothedEncoder, image: torch.Tensor, n: int) -> float:
    """The loop one would write first: one noise sample a pass."""
    generator = image_generator(image, "score", 0)
    reference = smoothed.reference(image[None])[0, 0]
    total = 0.0
    with torch.inference_mode():
        for _ in range(n):
            noisy = draw_noise(image[None], smoothed.config.sigma, 1, generator)
            total += float((1 + smoothed.reduce(smoothed.encode(noisy))[0, 0] @ reference) / 2)
    return total / n


def throughput(smoothed: SmoothedEncoder, image: torch.Tensor, n: int, label: str) -> None:
    config = CertificateConfig(n=n, n_ref=1)
    ours = float(sample_scores(smoothed, image, config).similarity[:, 0].mean())
    naive = naive_score(smoothed, image, n)
    ratio = seconds(lambda: naive_score(smoothed, image, n), 3) / seconds(lambda: sample_scores(smoothed, image, config), 3)
    print(f"{label}: certifying is {ratio:.1f}x as fast as one sample a pass (n={n}; mean scores differ by {abs(ours - naive):.1e})")


def wrapper_overhead(smoothed: SmoothedEncoder, image: torch.Tensor, n: int) -> None:
    batch = draw_noise(image[None], smoothed.config.sigma, smoothed.config.chunk_size, torch.Generator().manual_seed(0))
    passes = n // smoothed.config.chunk_size
    config = CertificateConfig(n=n, n_ref=1)

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(passes):
            smoothed.encode(batch)

    pairs = [(seconds(lambda: sample_scores(smoothed, image, config), 1), seconds(bare, 1)) for _ in range(7)]
    print(f"wrapper: {statistics.median(ours / base for ours, base in pairs):.3f}x the bare batched encoder (n={n})")


def bounds_share(smoothed: SmoothedEncoder, image: torch.Tensor, images: int = 1000) -> None:
    config = CertificateConfig(n=1000)
    sampling = seconds(lambda: sample_scores(smoothed, image, config), 2)
    scores = np.random.default_rng(0).uniform(0.7, 0.99, images)
    start = time.perf_counter()
    for score in scores:
        for eps in config.eps:
            for bound in BOUNDS:
                cosine_bound(score, eps / smoothed.config.sigma, bound)
        for bound in BOUNDS:
            certified_radius(score, smoothed.config.sigma, config.tau, bound)
    spent = time.perf_counter() - start
    share = spent / (spent + images * sampling)
    print(f"tight bounds: {spent:.1f} s for {images} images, {share:.1%} of the time of certifying them ({sampling:.2f} s an image)")


def memory(smoothed: SmoothedEncoder, image: torch.Tensor) -> None:
    peaks = []
    for n in (256, 4096):
        certificate(smoothed, sample_scores(smoothed, image, config := CertificateConfig(n=n)), config)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"memory: peak {peaks[0]:.0f} MiB at n=256, {peaks[1]:.0f} MiB at n=4096 ({peaks[1] / peaks[0]:.3f}x)")


def real_configuration() -> None:
    """Certifying throughput and peak memory of CLIP ViT-L/14 behind the ImageNet diffusion purifier, random weights, on a GPU."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
    from visiongraft.methods.feature_smoothing.encoders import Encoder

    if not torch.cuda.is_available():
        print("--real needs a CUDA device; none is here.")
        return
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, image_size=224, projection_dim=768)).eval().cuda().bfloat16()
    encoder = Encoder.from_transformers(tower, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    purifier = DiffusionPurifier().eval().cuda().bfloat16()
    image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)).cuda()
    for name, part in (("bare tower", None), ("tower behind the diffusion purifier", purifier)):
        smoothed = SmoothedEncoder(encoder, SmoothingConfig(sigma=0.25, chunk_size=64), part)
        torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda s=smoothed: sample_scores(s, image, CertificateConfig(n=256, n_ref=1)), 2)
        print(
            f"{name}: {256 / took:.0f} samples/s, {1000 * took / 256:.1f} s an image at n=1000, "
            f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {torch.cuda.get_device_name()}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="measure the released configuration on a GPU")
    if parser.parse_args().real:
        real_configuration()
        return
    image = held_out_images(0, digits=1, shapes=0)[0]
    settings = SmoothingConfig(sigma=0.25, token_mode="pooled", chunk_size=64)
    bare = load_smoothed(EncoderConfig(encoder="small", purifier="none", mapper="none"), settings)
    full = load_smoothed(EncoderConfig(encoder="small"), settings)
    throughput(bare, image, 1024, "encoder alone")
    throughput(full, image, 1024, "purifier, encoder and mapper")
    wrapper_overhead(full, image, 1024)
    memory(full, image)
    bounds_share(full, image)


if __name__ == "__main__":
    main()

"""Cost of circular encoding and decoding beside plain ones, FLUX's autoencoder with random weights. Prints ratios; asserts nothing.

    python benchmarks/panorama_circular.py            # CPU, 64x128 panoramas padded by an eighth a side
    python benchmarks/panorama_circular.py --real     # 1024x2048 in bfloat16 (needs a GPU)

The limit is 1 + 2 pad: the part of the picture that is encoded twice. The attention in the middle of this autoencoder is quadratic, so
large panoramas cost more than that: operations at the paper's sizes are counted on the meta device. Also printed: how much latents and
pixels next to the border change when the panorama is rolled half a turn, with the default pad and plain, in standard deviations.
"""

import argparse
import statistics
import time

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from visiongraft.methods.panorama.circular import CircularPadding, decode_latents, encode_latents, pad_width


def flux_autoencoder() -> AutoencoderKL:
    """The configuration of FLUX.1's VAE: 84 million random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.eval().requires_grad_(False)


def paired_ratio(circular, plain, repeats: int) -> tuple[float, float]:
    """Median over pairs of the ratio of wall times, and the median time of the plain call."""
    circular(), plain()
    pairs = [(seconds(circular), seconds(plain)) for _ in range(repeats)]
    return statistics.median(ours / base for ours, base in pairs), statistics.median(base for _, base in pairs)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def border_trace(function, values: torch.Tensor) -> float:
    """Mean change of the outer and the middle columns under a roll by half a turn, in standard deviations of the result."""
    here = function(values)
    turned = function(values.roll(values.shape[-1] // 2, -1)).roll(-(here.shape[-1] // 2), -1)
    columns, middle = max(1, here.shape[-1] // 64), here.shape[-1] // 2
    error = (turned - here).float().abs()
    near = torch.cat([error[..., :columns], error[..., -columns:], error[..., middle - columns : middle + columns]], -1)
    return float(near.mean() / here.float().std())


def measure(vae: AutoencoderKL, height: int, padding: CircularPadding, repeats: int) -> None:
    pixels = (torch.rand(1, 3, height, 2 * height, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(vae.device, vae.dtype)
    latents = encode_latents(vae, pixels, padding=padding)
    limit = 1 + 2 * pad_width(2 * height, padding, 8) / (2 * height)
    for name, function, values in (("encode", encode_latents, pixels), ("decode", decode_latents, latents)):
        calls = [lambda c=circular: function(vae, values, circular=c, padding=padding) for circular in (True, False)]
        ratio, plain = paired_ratio(*calls, repeats)
        traces = [border_trace(lambda x: function(vae, x, circular=circular), values) for circular in (True, False)]
        print(
            f"{name} {height}x{2 * height}: circular is {ratio:.2f}x plain ({plain:.2f} s), limit {limit:.2f}x; "
            f"change at the border under a roll {traces[0]:.4f} circular, {traces[1]:.4f} plain ({traces[0] / traces[1]:.3f}x)"
        )


def operations(height: int, padding: CircularPadding) -> None:
    """Ratio of floating-point operations with and without the pad, counted without computing anything."""
    with torch.device("meta"):
        vae = flux_autoencoder()
    columns = pad_width(2 * height, padding, 8)
    ratios = []
    for call, channels, stride in ((vae.encode, 3, 1), (vae.decode, 16, 8)):
        counts = []
        for width in (2 * height, 2 * height + 2 * columns):
            with FlopCounterMode(display=False) as counter:
                call(torch.empty(1, channels, height // stride, width // stride, device="meta"))
            counts.append(counter.get_total_flops())
        ratios.append(counts[1] / counts[0])
    print(
        f"operations {height}x{2 * height}, {columns} pixels a side: encode {ratios[0]:.3f}x, decode {ratios[1]:.3f}x, "
        f"limit {1 + columns / height:.3f}x"
    )


def real_configuration() -> None:
    """Time and peak memory at the paper's size."""
    if not torch.cuda.is_available():
        print("--real needs a CUDA device; none is here.")
        return
    vae = flux_autoencoder().cuda().bfloat16()
    for name, padding in (("an eighth", CircularPadding()), ("112 pixels", CircularPadding(pad_fraction=0.0))):
        torch.cuda.reset_peak_memory_stats()
        print(f"padded by {name}, {torch.cuda.get_device_name()}:")
        measure(vae, 1024, padding, 5)
        print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="measure the paper's size on a GPU")
    parser.add_argument("--height", type=int, default=64, help="of the panorama on CPU, a multiple of 32 (default: 64)")
    chosen = parser.parse_args()
    if chosen.real:
        real_configuration()
    else:
        measure(flux_autoencoder(), chosen.height, CircularPadding(min_pad=0, multiple=8), 5)
        for height, padding in ((512, CircularPadding()), (1024, CircularPadding()), (1024, CircularPadding(pad_fraction=0.0))):
            operations(height, padding)


if __name__ == "__main__":
    main()

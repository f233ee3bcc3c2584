import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.media.images import save_image
from visiongraft.methods.panorama.evaluation import evaluate_cameras, evaluate_clips, evaluate_folders, evaluate_images
from visiongraft.methods.panorama.evaluation_views import render_views, view_azimuths, visibility_mask
from visiongraft.methods.panorama.protocols import PROTOCOLS, EvaluationProtocol, find_protocol
from visiongraft.metrics.frechet import frechet_distance
from visiongraft.metrics.masked import masked_psnr
from visiongraft.metrics.seams import discontinuity_score, interior_discontinuity, seam_ratio

pytestmark = pytest.mark.filterwarnings("ignore:.*Fréchet", "ignore:generated panoramas")
SMALL = replace(PROTOCOLS["small"], kernel_subsets=5)


def worlds(count, seed=0, height=64):
    """Smooth random functions on the sphere, seamless by construction."""
    g = torch.Generator().manual_seed(seed)
    rays = panorama_rays(height, 2 * height)
    waves = 2 * torch.randn(count, 3, 4, 3, generator=g)
    phases = 6 * torch.rand(count, 3, 4, 1, 1, generator=g)
    return 0.5 + 0.1 * torch.sin(torch.einsum("bcki,hwi->bckhw", waves, rays) + phases).sum(2)


def encoder(views):
    return views.mean((2, 3)) + 0.5 * views[:, :, ::4, ::4].std((2, 3))


def evaluate(generated, reference, **options):
    return evaluate_images(list(generated), None if reference is None else list(reference), SMALL, **options)


def test_presets_have_the_published_views():
    laval = find_protocol("laval")
    assert (laval.views, laval.view_hfov_deg, laval.view_elevation_deg, laval.azimuths) == (8, 90, 0, "random")
    assert laval.panorama_size == (1024, 2048) and laval.faed_size == (512, 1024) and laval.input_pitch_deg == (0, 0)
    argus = find_protocol("argus-simulated")
    assert (argus.views, argus.azimuths, argus.num_frames, argus.fps, argus.panorama_size) == (4, "even", 81, 16, (512, 1024))
    assert set(PROTOCOLS) == {"laval", "sun360", "argus-real", "argus-simulated", "camera", "small"}


def test_azimuths_are_seeded_even_and_independent_of_the_number_of_panoramas():
    laval = find_protocol("laval")
    assert torch.equal(view_azimuths(laval, 5)[:3], view_azimuths(laval, 3))
    assert not torch.equal(view_azimuths(laval, 3), view_azimuths(replace(laval, azimuth_seed=1), 3))
    assert float(view_azimuths(laval, 50).min()) >= 0 and float(view_azimuths(laval, 50).max()) < 2 * math.pi
    assert torch.rad2deg(view_azimuths(find_protocol("argus-real"), 2)).round().tolist() == [[0, 90, 180, 270]] * 2


def test_views_look_along_their_azimuths():
    rays = panorama_rays(64, 128)
    front, right, back, left = render_views((rays.permute(2, 0, 1) + 1) / 2, view_azimuths(SMALL, 1)[0], SMALL)
    centre = slice(15, 17)
    for view, direction in ((front, (0, 0, 1)), (right, (1, 0, 0)), (back, (0, 0, -1)), (left, (-1, 0, 0))):
        assert torch.allclose(view[:, centre, centre].mean((1, 2)) * 2 - 1, torch.tensor(direction).float(), atol=0.02)


def test_visibility_is_a_quarter_of_the_horizon_at_90_degrees():
    mask = visibility_mask(torch.tensor([[90.0, 0.0, 0.0, 0.0]]), 64)
    assert mask[0, 0, 32].nonzero().flatten().tolist() == list(range(48, 80))
    tall = visibility_mask(torch.tensor([[90.0, 0.0, 0.0, 0.0]]), 64, aspect=0.5)
    assert int(tall[0, 0, :, 64].sum()) > int(mask[0, 0, :, 64].sum())


def test_without_encoder_only_encoder_free_metrics_are_reported_and_the_result_says_so():
    fake, real = worlds(3), worlds(4, seed=1)
    result = evaluate(fake, real)
    assert result["encoders"] == {} and result["counts"] == {"generated": 3, "reference": 4}
    assert result["not_computed"] == {
        "frechet": "no feature encoder was given",
        "kernel": "no feature encoder was given",
        "omni_frechet": "no feature encoder was given",
        "masked_psnr": "no cameras were given",
    }
    seam = result["seam"]["generated"]
    assert seam["discontinuity"]["mean"] == pytest.approx(float(discontinuity_score(fake).mean()), rel=1e-3)
    assert seam["interior_discontinuity"]["mean"] == pytest.approx(float(interior_discontinuity(fake).mean()), rel=1e-3)
    assert seam["seam_ratio"]["median"] == pytest.approx(float(seam_ratio(fake).double().quantile(0.5)), rel=1e-3)


def test_the_result_is_json_and_holds_every_field_of_the_protocol():
    result = json.loads(json.dumps(evaluate(worlds(2), worlds(2, 1), encoders={"mean": encoder}), allow_nan=False))
    fields = EvaluationProtocol.__dataclass_fields__
    assert set(result["protocol"]) == set(fields) and result["protocol"]["view_hfov_deg"] == 90
    assert result["encoders"]["mean"]["encoder"] == {"model": "encoder"}


def test_distances_are_those_of_the_views_at_the_same_azimuths():
    fake, real = worlds(6), worlds(5, seed=1) * 0.8
    random = replace(SMALL, azimuths="random")
    result = evaluate_images(list(fake), list(real), random, {"mean": encoder})["encoders"]["mean"]
    azimuths = view_azimuths(random, 6)
    views = [torch.cat([encoder(render_views(p, a, random)) for p, a in zip(s, azimuths, strict=False)]) for s in (real, fake)]
    assert result["frechet"] == pytest.approx(frechet_distance(*views)) and result["views"] == {"reference": 20, "generated": 24}
    assert result["kernel_subset_size"] == 20 and set(result["omni_frechet"]) == {"mean", "up", "down", "horizontal"}


def test_equal_sets_are_at_no_distance_and_darker_ones_are_not():
    real = worlds(6)
    equal, darker = (evaluate(x, real, encoders={"mean": encoder})["encoders"]["mean"] for x in (real, real * 0.6))
    assert equal["frechet"] == pytest.approx(0, abs=1e-6) and equal["omni_frechet"]["mean"] == pytest.approx(0, abs=1e-6)
    assert darker["frechet"] > 0.05 and darker["kernel_x100"] > equal["kernel_x100"]


def test_faed_compares_whole_panoramas():
    real = worlds(4)
    pool = lambda x: torch.nn.functional.avg_pool2d(x, 16)
    result = evaluate(real.roll(32, -1), real, panorama_encoder=pool)
    assert result["faed"] == pytest.approx(0, abs=1e-6) and "faed" not in result["not_computed"]


def test_masked_psnr_looks_only_where_the_input_did():
    real = worlds(2)
    cameras = torch.tensor([[80.0, 0.0, 10.0, 5.0], [60.0, 0.0, -20.0, 0.0]])
    mask = visibility_mask(cameras, 64)
    fake = torch.where(mask, real + 0.1, torch.zeros(()))
    result = evaluate(fake, real, cameras_deg=cameras)
    assert result["masked_psnr"]["mean"] == pytest.approx(20, abs=1e-3)
    assert result["masked_psnr"]["mean"] == pytest.approx(float(masked_psnr(fake, real, mask).mean()), abs=1e-4)
    assert evaluate(real, real, cameras_deg=cameras)["masked_psnr"]["mean"] is None  # infinite, which JSON does not have


def test_other_sizes_and_jpeg_are_noted(tmp_path):
    save_image(worlds(1, height=48)[0], tmp_path / "a.png").rename(tmp_path / "a.jpg")
    with pytest.warns(UserWarning, match="instead of the protocol's"):
        notes = evaluate_images(tmp_path, None, SMALL)["notes"]
    assert len(notes) == 2 and "(48, 96)" in notes[0] and "JPEG" in notes[1]


def test_folders_are_evaluated_into_a_json_file(tmp_path, capsys):
    for folder, seed in (("fake", 0), ("real", 1)):
        for index, picture in enumerate(worlds(2, seed)):
            save_image(picture, tmp_path / folder / f"{index}.png")
    output = tmp_path / "out" / "result.json"
    options = SimpleNamespace(
        generated=tmp_path / "fake", reference=tmp_path / "real", protocol="small", encoder=None, output=output, device="cpu"
    )
    assert evaluate_folders(options) == 0
    assert json.loads(output.read_text())["counts"] == {"generated": 2, "reference": 2}
    printed = capsys.readouterr().out
    assert "seam_ratio" in printed and "frechet: no feature encoder was given" in printed


def test_clips_are_measured_inside_one_union_mask_each():
    clip = worlds(3)
    cameras = torch.tensor([[60.0, yaw, 0.0, 0.0] for yaw in (-30.0, 0.0, 30.0)])
    union = visibility_mask(cameras, 64).any(0)
    fake = torch.where(union, clip + 0.1, torch.zeros(()))
    video = replace(PROTOCOLS["argus-simulated"], panorama_size=(64, 128))
    result = evaluate_clips([fake], [clip], [cameras], video, spatial_distance=lambda a, b: (a - b).abs().mean(1, keepdim=True))
    assert result["masked_psnr"]["mean"] == pytest.approx(20, abs=1e-3) and result["masked_lpips"]["mean"] == pytest.approx(0.1, abs=1e-5)
    assert set(result["not_computed"]) == {"fvd", "vbench"}


def test_camera_errors_have_mean_median_and_areas():
    truth = {name: torch.zeros(4) for name in ("hfov_deg", "pitch_deg", "roll_deg")}
    estimate = {
        "hfov_deg": torch.tensor([1.0, 2.0, 3.0, 6.0]),
        "pitch_deg": torch.zeros(4),
        "roll_deg": torch.tensor([0.0, 359.0, 0.5, float("nan")]),
    }
    result = evaluate_cameras(estimate, truth, PROTOCOLS["camera"])
    assert result["hfov_deg"]["mean"] == 3 and result["hfov_deg"]["median"] == 2.5 and result["hfov_deg"]["auc@1"] == 0.25
    assert result["pitch_deg"]["auc@10"] == 1
    assert result["roll_deg"]["failed"] == 1 and result["roll_deg"]["auc@1"] == 0.75 and result["roll_deg"]["mean"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: find_protocol("lavall"), "no protocol 'lavall'; choose one of laval, sun360"),
        (lambda p: evaluate_images(list(p), None, PROTOCOLS["argus-real"]), "argus-real is for video, not image; use evaluate_clips"),
        (lambda p: evaluate_cameras({}, {}, SMALL), "small is for image, not camera; use evaluate_images"),
        (lambda p: evaluate_images([], None, SMALL), "no panoramas to evaluate"),
        (lambda p: evaluate(p[:, :, :, :100], None), "Panorama 0: ERP must have W = 2H; got 64x100"),
        (lambda p: evaluate(p[:1], p, encoders={"mean": encoder}), "at least 2 panoramas in each; got 1 generated"),
        (lambda p: evaluate(p, p[:1], cameras_deg=torch.zeros(2, 4)), "must pair up; got 2 generated, 1 reference and 2 cameras"),
        (lambda p: evaluate(p, p, cameras_deg=torch.ones(2, 4)), "did you pass radians"),
        (lambda p: evaluate_clips([p], [p[:1]], [torch.zeros(2, 4)], PROTOCOLS["argus-real"]), "Clip 0: shapes of generated"),
        (lambda p: replace(SMALL, view_hfov_deg=1.5), "did you pass radians"),
        (lambda p: replace(SMALL, views=0), "at least 1 view"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(worlds(2))

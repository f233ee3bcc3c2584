"""Depth: units, stereo against closed forms, triangulation in float64, and models that guess it from one image."""

import numpy as np
import pytest
import torch

from visiongraft.methods.point_bridge.depth import CameraDepth, MonoDepth, read_depth
from visiongraft.methods.point_bridge.frames import Frame, crop_frame, frame_of, resize_camera
from visiongraft.methods.point_bridge.stereo import NetworkMatcher, RemoteStereoDepth, SemiGlobalMatcher, StereoDepth, stereo_baseline
from visiongraft.methods.point_bridge.triangulation import EpipolarMatcher, TriangulatedDepth, triangulate_views
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy
from visiongraft.robots.poses import look_at, make_pose, rotation_from_vector, transform_points

SIZE = (80, 120)
BASELINE = 0.06


def camera(size: tuple[int, int] = SIZE) -> Camera:
    return Camera(intrinsics_from_fovy(0.9, size), look_at(np.array([0.0, 0.4, 0.7]), np.array([0.5, 0.0, 0.0])), size)


def moved(
    left: Camera, by: tuple[float, float, float] = (BASELINE, 0.0, 0.0), turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Camera:
    return Camera(left.intrinsics, left.camera_to_base @ make_pose(rotation_from_vector(np.array(turn)), np.array(by)), left.size)


def texture(points: np.ndarray) -> np.ndarray:
    """A smooth pattern of the table, so that both views see the same thing."""
    x, y = points[..., 0], points[..., 1]
    waves = [np.sin(61 * x + 17 * y), np.sin(43 * y - 11 * x + 1), np.sin(90 * x - 70 * y + 2)]
    return (127 + 40 * np.stack(waves, -1) + 40 * np.sin(25 * x + 140 * y)[..., None]).clip(0, 255).astype(np.uint8)


def view_of_table(seen_by: Camera) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[: seen_by.size[0], : seen_by.size[1]] + 0.5
    rays = np.stack([columns, rows, np.ones(seen_by.size)], -1) @ np.linalg.inv(seen_by.intrinsics).T
    depth = -seen_by.camera_to_base[2, 3] / (rays @ seen_by.camera_to_base[2, :3])
    points = transform_points(seen_by.camera_to_base, (rays * depth[..., None]).reshape(-1, 3)).reshape(*seen_by.size, 3)
    return texture(points), depth


def pair(size: tuple[int, int] = SIZE) -> tuple[Frame, np.ndarray]:
    left = camera(size)
    image, depth = view_of_table(left)
    return Frame(image, left, right_image=view_of_table(moved(left))[0], right_camera=moved(left)), depth


def test_millimetres_and_metres_are_the_same_depth() -> None:
    metres = np.array([[0.5, 0.0], [np.nan, 1.25]])
    expected = np.array([[0.5, np.inf], [np.inf, 1.25]], np.float32)
    assert np.array_equal(read_depth(metres, "m"), expected)
    assert np.array_equal(read_depth(np.array([[500, 0], [0, 1250]], np.uint16), "mm"), expected)
    assert np.array_equal(read_depth(np.array([[0.5, -1.0], [-np.inf, 1.25]]), "m"), expected)


@pytest.mark.parametrize(
    ("depth", "unit", "message"),
    [
        (np.ones((2, 2)), "cm", "'m' or 'mm', got 'cm'"),
        (np.ones((2, 2, 3)), "m", r"one number a pixel, height x width; got shape \(2, 2, 3\)"),
        (np.full((2, 2), np.nan), "m", "no known pixel: all 4 are NaN"),
        (np.full((2, 2), 800.0), "m", "median depth is 800 m .* these are millimetres: give the unit 'mm'"),
        (np.full((2, 2), 0.8), "mm", "these are metres: give the unit 'm'"),
    ],
)
def test_depth_that_makes_no_sense_is_refused(depth: np.ndarray, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_depth(depth, unit)


def test_a_camera_without_depth_is_told() -> None:
    with pytest.raises(ValueError, match="This camera has no depth"):
        CameraDepth()(pair()[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((80, 120, 3), np.float32)}, "of uint8, first row on top"),
        ({"image": np.zeros((80, 120), np.uint8)}, "of uint8, first row on top"),
        ({"image": np.zeros((120, 80, 3), np.uint8)}, "calibrated for 80x120 pixels .* the image has 120x80"),
        ({"depth": np.ones((40, 60), np.float32)}, "depth has 40x60 pixels .* the image 80x120"),
    ],
)
def test_frames_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Frame(**{"image": np.zeros((80, 120, 3), np.uint8), "camera": camera(), **change})


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [(np.eye(4), "intrinsics of a camera must be 3x3, got 4x4"), (np.full((3, 3), np.nan), "not finite")],
)
def test_wrong_intrinsics_are_refused(intrinsics: np.ndarray, message: str) -> None:
    # the camera's own checks; the shape is wrong on purpose, so the annotation is passed by
    with pytest.raises(ValueError, match=message):
        Camera.__post_init__(_raw_camera(intrinsics))


def _raw_camera(intrinsics: np.ndarray) -> Camera:
    raw = object.__new__(Camera)
    for name, value in (("intrinsics", intrinsics), ("camera_to_base", np.eye(4)), ("size", SIZE)):
        object.__setattr__(raw, name, value)
    return raw


def test_a_matcher_that_reaches_near_things_finds_what_the_default_does_not() -> None:
    zed = Camera(np.array([[532.0, 0, 640], [0, 532.0, 360], [0, 0, 1]]), np.eye(4), (720, 1280))
    assert SemiGlobalMatcher.reaching(zed, 0.12).disparities == 256 == SemiGlobalMatcher.reaching(zed, 0.12, 0.25).disparities
    assert SemiGlobalMatcher.reaching(zed, 0.12, 1e-3).disparities == 1280 and SemiGlobalMatcher.reaching(zed, 1e-3, 2.0).disparities == 16
    lens = Camera(np.array([[300.0, 0, 160], [0, 300.0, 30], [0, 0, 1]]), np.eye(4), (60, 320))
    aside = Camera(lens.intrinsics, np.eye(4) + 0.12 * np.eye(4)[0][:, None] * np.eye(4)[3], lens.size)
    texture = np.random.default_rng(0).integers(256, size=(60, 410, 3), dtype=np.uint8)
    wall = Frame(np.ascontiguousarray(texture[:, :320]), lens, right_image=np.ascontiguousarray(texture[:, 90:]), right_camera=aside)
    near = StereoDepth(SemiGlobalMatcher.reaching(lens, 0.12))(wall)[10:50, 110:300]
    assert np.median(near) == pytest.approx(300 * 0.12 / 90, rel=0.01)
    far = StereoDepth(SemiGlobalMatcher())(wall)[10:50, 110:300]
    assert not np.isclose(far, 0.4, rtol=0.05).any()
    with pytest.raises(ValueError, match=r"must be positive, in metres; got 0\.12 and 0\.0"):
        SemiGlobalMatcher.reaching(lens, 0.12, 0.0)


def test_frames_of_observations_name_what_is_missing() -> None:
    given, depth = pair()
    observation = {"images": {"left": given.image}, "cameras": {"left": given.camera}, "depth": {"left": depth.astype(np.float32)}}
    assert frame_of(observation, "left").depth is observation["depth"]["left"]
    with pytest.raises(ValueError, match="no images of camera 'wrist'; there are 'left'"):
        frame_of(observation, "wrist")
    with pytest.raises(ValueError, match="no images of camera 'right'"):
        frame_of(observation, "left", "right")


def test_resized_and_cropped_cameras_see_the_same_rays() -> None:
    given, _ = pair()
    small = resize_camera(given.camera, (40, 30))
    pixel = np.array([50.0, 20.0, 1.0])
    assert np.allclose(np.linalg.inv(small.intrinsics) @ [50 * 30 / 120, 20 / 2, 1], np.linalg.inv(given.camera.intrinsics) @ pixel)
    part = crop_frame(given, (0.25, 1.0), (0.5, 0.75))
    assert part.image.shape == (60, 30, 3) and np.array_equal(part.image, given.image[20:, 60:90])
    assert np.allclose(np.linalg.inv(part.camera.intrinsics) @ [5, 7, 1], np.linalg.inv(given.camera.intrinsics) @ [65, 27, 1])
    assert part.right_camera is not None and stereo_baseline(part.camera, part.right_camera) == pytest.approx(BASELINE)
    with pytest.raises(ValueError, match=r"rows of a crop .* got \(0\.5, 0\.5\)"):
        crop_frame(given, (0.5, 0.5))


def test_perfect_disparity_gives_perfect_depth_and_hides_what_the_right_view_cannot_show() -> None:
    given, depth = pair()
    focal = given.camera.intrinsics[0, 0]
    found = StereoDepth(lambda left, right: (focal * BASELINE / depth).astype(np.float32))(given)
    seen = np.arange(SIZE[1]) + 0.5 - focal * BASELINE / depth >= 0
    assert np.allclose(found[seen], depth[seen], rtol=1e-5) and np.isinf(found[~seen]).all() and 0 < (~seen).mean() < 0.3


def test_depth_does_not_depend_on_the_size_that_the_matcher_gets() -> None:
    given, depth = pair()
    sizes = []

    def matcher(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        sizes.append(left.shape)
        focal = camera().intrinsics[0, 0] * left.shape[1] / SIZE[1]
        rows, columns = (np.linspace(0, n - 1, m).round().astype(int) for n, m in zip(SIZE, left.shape, strict=False))
        return (focal * BASELINE / depth[rows[:, None], columns]).astype(np.float32)

    found = StereoDepth(matcher, size=(160, 240))(given)
    assert sizes == [(160, 240, 3)]
    known = np.isfinite(found)
    assert known.mean() > 0.7 and np.abs(found - depth)[known].max() < 0.03  # a pixel of a steep table


def test_a_remote_service_gets_resized_images_with_intrinsics_to_match() -> None:
    given, depth = pair()
    asked = []

    def service(left: np.ndarray, right: np.ndarray, intrinsics: np.ndarray, baseline: float) -> np.ndarray:
        asked.append((left.shape, intrinsics, baseline))
        return depth[:: SIZE[0] // 40, :: SIZE[1] // 60].astype(np.float32)

    found = RemoteStereoDepth(service, (40, 60))(given)
    shape, intrinsics, baseline = asked[0]
    assert shape == (40, 60, 3) and baseline == pytest.approx(BASELINE)
    assert np.allclose(intrinsics, np.diag([0.5, 0.5, 1]) @ given.camera.intrinsics)
    known = np.isfinite(found)
    assert np.abs(found - depth)[known].max() < 0.06  # the service answered for every second pixel


@pytest.mark.parametrize(
    ("by", "turn", "message"),
    [
        ((BASELINE, 0.0, 0.0), (0.0, 0.02, 0.0), r"turned by 1\.15 degrees"),
        ((-BASELINE, 0.0, 0.0), (0.0, 0.0, 0.0), r"to the right \(\+x\) only"),
        ((BASELINE, 0.01, 0.0), (0.0, 0.0, 0.0), "not rectified"),
    ],
)
def test_pairs_that_are_not_rectified_are_refused(by: tuple, turn: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stereo_baseline(camera(), moved(camera(), by, turn))


def test_stereo_refuses_other_intrinsics_a_missing_view_and_a_wrong_answer() -> None:
    left = camera()
    other = Camera(left.intrinsics * np.array([[1.1], [1.0], [1.0]]), moved(left).camera_to_base, SIZE)
    with pytest.raises(ValueError, match="different intrinsics"):
        stereo_baseline(left, other)
    with pytest.raises(ValueError, match="needs a second view"):
        StereoDepth(SemiGlobalMatcher())(Frame(pair()[0].image, left))
    with pytest.raises(ValueError, match=r"gave \(2, 2\) for images of \(80, 120\)"):
        StereoDepth(lambda a, b: np.ones((2, 2), np.float32))(pair()[0])


def test_semi_global_matching_finds_a_textured_table() -> None:
    given, depth = pair((160, 240))
    found = StereoDepth(SemiGlobalMatcher(disparities=32))(given)
    known = np.isfinite(found)
    assert known.mean() > 0.6
    error = given.camera.intrinsics[0, 0] * BASELINE * np.abs(1 / found - 1 / depth)[known]  # pixels of disparity
    assert np.median(error) < 0.25 and np.percentile(error, 90) < 0.8


@pytest.mark.parametrize("options", [{"disparities": 20}, {"block": 4}, {"enlarge": 0}])
def test_bad_matching_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="disparities that are a multiple of 16, an odd block"):
        SemiGlobalMatcher(**options)


def test_a_missing_network_is_told(tmp_path: object) -> None:
    with pytest.raises(FileNotFoundError, match=r"no stereo network .*export one to ONNX, or use SemiGlobalMatcher"):
        NetworkMatcher(f"{tmp_path}/stereo.onnx")


def test_triangulated_points_are_the_points_and_wrong_matches_are_told() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([0.3, -0.2, 0.0], [0.6, 0.2, 0.1], (50, 3))
    first, second = camera(), moved(camera(), (0.3, 0.05, 0.1), (0.0, -0.3, 0.1))

    def seen(by: Camera) -> np.ndarray:
        local = transform_points(by.base_to_camera, points) @ by.intrinsics.T
        return local[:, :2] / local[:, 2:]

    found, good = triangulate_views(seen(first), seen(second), first, second)
    assert good.all() and np.allclose(found, points, atol=1e-9)
    wrong = seen(second)
    wrong[:10, 1] += 20
    assert not triangulate_views(seen(first), wrong, first, second)[1][:10].any()


def test_matching_along_epipolar_lines_finds_the_table() -> None:
    given, depth = pair((100, 150))
    found = TriangulatedDepth(matcher=EpipolarMatcher(depth_range=(0.5, 1.6)), stride=5)(given)
    known = np.isfinite(found)
    assert found.shape == (100, 150) and known.mean() > 0.4
    middle = np.s_[2::5, 2::5]
    error = np.abs(found - depth)[middle][known[middle]]
    assert np.median(error) < 0.01


def test_triangulation_finds_no_match_without_texture() -> None:
    given, _ = pair()
    blank = Frame(np.full_like(given.image, 90), given.camera, right_image=np.full_like(given.image, 90), right_camera=given.right_camera)
    assert not np.isfinite(TriangulatedDepth(stride=8)(blank)).any()
    with pytest.raises(ValueError, match="needs a second view"):
        TriangulatedDepth()(Frame(given.image, given.camera))


def tiny_depth_anything(kind: str) -> torch.nn.Module:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20,
    )
    torch.manual_seed(0)
    return DepthAnythingForDepthEstimation(config)


def test_a_metric_depth_anything_gives_metres_of_the_images_size() -> None:
    given, _ = pair()
    model = tiny_depth_anything("metric")
    found = MonoDepth(model, (28, 42))(given)
    assert found.shape == SIZE and found.dtype == np.float32 and (found > 0).all() and found.max() <= 20
    assert np.array_equal(found, MonoDepth(model, (28, 42))(given))


def test_relative_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts depth up to an unknown scale; take DepthPro or a metric"):
        MonoDepth(tiny_depth_anything("relative"), (28, 42))


def test_depth_pro_is_scaled_by_the_calibrated_focal_length() -> None:
    class Canonical(torch.nn.Module):
        """Answers like DepthPro: inverse depth for a focal length of one image width."""

        config = type("Config", (), {"model_type": "depth_pro", "patch_size": 8})()
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, pixel_values: torch.Tensor) -> object:
            inverse = torch.full((1, *pixel_values.shape[-2:]), given.camera.intrinsics[0, 0] / SIZE[1] / 0.8)
            return type("Output", (), {"predicted_depth": inverse})()

    given, _ = pair()
    assert np.allclose(MonoDepth(Canonical(), (32, 32))(given), 0.8, rtol=1e-5)


def test_a_tiny_depth_pro_runs() -> None:
    from transformers import DepthProConfig, DepthProForDepthEstimation

    small = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
        "image_size": 16,
        "intermediate_size": 32,
        "use_mask_token": False,
    }
    config = DepthProConfig(
        fusion_hidden_size=16,
        patch_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[10, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 10],
        use_fov_model=False,
        image_model_config=small,
        patch_model_config=small,
        fov_model_config=small,
    )
    torch.manual_seed(0)
    found = MonoDepth(DepthProForDepthEstimation(config), (64, 64))(pair()[0])
    assert found.shape == SIZE and (found > 0).all() and np.isfinite(found).all()

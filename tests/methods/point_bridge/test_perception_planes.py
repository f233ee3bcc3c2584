"""Objects on a table without a network: planes, pieces, colours, and which piece is which from frame to frame."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.methods.point_bridge.lifting import base_points
from visiongraft.methods.point_bridge.plane_removal import PlaneRemoval, connected_pieces, table_heights
from visiongraft.methods.point_bridge.region_growing import RegionGrowing
from visiongraft.methods.point_bridge.simulated import InstancePointer, InstanceSegmenter, InstanceTracker, largest_piece
from visiongraft.methods.point_bridge.tracking import AmbiguousTrackingWarning, PieceTracker
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy

SIZE = (120, 160)
TABLE = 0.8  # metres below the camera
Block = tuple[float, float, float, float]
"""Centre x, y, half width and height of a block, metres."""


def camera() -> Camera:
    """Looks straight down; the base frame's table is at z = 0."""
    pose = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, TABLE], [0, 0, 0, 1]])
    return Camera(intrinsics_from_fovy(0.7, SIZE), pose, SIZE)


def scene(*blocks: Block, gripper_pose: np.ndarray | None = None) -> Frame:
    """Flat-topped blocks seen from above, with their numbers as instance ids."""
    depth, ids = np.full(SIZE, TABLE, np.float32), np.full(SIZE, -1, np.int32)
    image = np.full((*SIZE, 3), 90, np.uint8)
    for number, (x, y, half, height) in enumerate(blocks):
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
        z = TABLE - height
        u, v = (columns - 80) * z / camera().intrinsics[0, 0], (rows - 60) * z / camera().intrinsics[1, 1]
        inside = (np.abs(u - x) < half) & (np.abs(-v - y) < half) & (z < depth)
        depth[inside], ids[inside], image[inside] = z, number, (200, 40 + 60 * number, 40)
    return Frame(image, camera(), depth=depth, segmentation=ids, gripper_pose=gripper_pose)


def pixel(x: float, y: float, height: float) -> tuple[float, float]:
    focal = camera().intrinsics[0, 0]
    return 80 + focal * x / (TABLE - height), 60 - focal * y / (TABLE - height)


TWO = ((-0.1, 0.05, 0.03, 0.04), (0.12, -0.05, 0.025, 0.03))


def masks_of(frame: Frame, *names: str) -> dict[str, np.ndarray]:
    return {name: frame.segmentation == number for number, name in enumerate(names)}


def test_heights_are_those_of_the_blocks() -> None:
    frame = scene(*TWO)
    _, heights = table_heights(frame)
    assert np.allclose(heights[frame.segmentation == 0], 0.04, atol=1e-6)
    assert np.allclose(heights[frame.segmentation < 0], 0, atol=1e-6)


def test_what_is_nearer_to_the_camera_stands_above_the_table_in_its_own_axes_too() -> None:
    frame = scene(*TWO)
    uncalibrated = replace(frame, camera=Camera(camera().intrinsics, np.eye(4), SIZE))
    assert np.allclose(table_heights(uncalibrated)[1], table_heights(frame)[1], atol=1e-6)


def test_the_piece_under_a_click_is_the_block() -> None:
    frame = scene(*TWO)
    for number, (x, y, _, height) in enumerate(TWO):
        assert np.array_equal(PlaneRemoval()(frame, pixel(x, y, height)), frame.segmentation == number)
    assert not PlaneRemoval()(frame, pixel(0.0, 0.15, 0.0)).any()


def test_a_click_just_beside_a_block_means_the_block() -> None:
    frame = scene(*TWO)
    u, v = pixel(TWO[0][0] - TWO[0][2], TWO[0][1], 0.04)
    assert np.array_equal(PlaneRemoval()(frame, (u - 2, v)), frame.segmentation == 0)


def test_a_click_on_the_floor_of_a_bin_means_its_walls() -> None:
    frame = scene((0.0, 0.0, 0.06, 0.05))
    floor = (np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([60, 80])[:, None, None])) < 8) & (frame.segmentation == 0)
    assert floor.sum() > 100
    bin_frame = frame.with_depth(np.where(floor, TABLE - 0.005, frame.depth).astype(np.float32))
    assert np.array_equal(PlaneRemoval()(bin_frame, (80.0, 60.0)), (frame.segmentation == 0) & ~floor)


def test_low_things_specks_and_high_things_are_no_objects() -> None:
    frame = scene((0.0, 0.0, 0.05, 0.006), (0.12, 0.1, 0.004, 0.03), (-0.1, 0.0, 0.03, 0.55))
    assert not PlaneRemoval(min_area=30).label(frame).any()


def test_a_depth_jump_cuts_touching_blocks_and_less_does_not() -> None:
    side = 0.03
    high, low = (-side, 0.0, side, 0.08), (side, 0.0, side, 0.03)
    assert len(np.unique(PlaneRemoval().label(scene(high, low)))) == 3
    assert len(np.unique(PlaneRemoval(depth_jump=0.06).label(scene(high, low)))) == 2


def test_pieces_connect_across_corners_in_both_directions() -> None:
    mask = np.eye(6, dtype=bool)
    depth = np.ones((6, 6))
    assert connected_pieces(mask, depth, 0.02).max() == connected_pieces(mask[:, ::-1], depth, 0.02).max() == 1
    assert connected_pieces(np.zeros((3, 3), bool), np.ones((3, 3)), 0.02).max() == 0
    apart = np.zeros((3, 5), bool)
    apart[:, [0, 2, 4]] = True
    assert connected_pieces(apart, np.ones((3, 5)), 0.02).max() == 3


def test_the_hand_is_taken_out_where_the_robot_knows_it_to_be() -> None:
    pose = np.array([[1.0, 0, 0, 0.0], [0, -1, 0, 0.0], [0, 0, -1, 0.03], [0, 0, 0, 1]])  # approach downwards, fingers' origin 3 cm up
    object_and_hand = ((0.0, 0.0, 0.02, 0.04), (0.0, 0.06, 0.04, 0.09))
    seen = PlaneRemoval(depth_jump=0.1).label(scene(*object_and_hand))
    with_pose = scene(*object_and_hand, gripper_pose=pose)
    without_hand = PlaneRemoval(depth_jump=0.1).label(with_pose)
    assert (seen > 0).sum() == (with_pose.segmentation >= 0).sum()
    assert np.array_equal(without_hand > 0, with_pose.segmentation == 0)
    assert np.array_equal(PlaneRemoval(depth_jump=0.1, gripper=None).label(with_pose) > 0, seen > 0)


def test_bad_depth_is_told() -> None:
    frame = scene(*TWO)
    with pytest.raises(ValueError, match="this camera has none"):
        PlaneRemoval()(Frame(frame.image, frame.camera), (3.0, 3.0))
    with pytest.raises(ValueError, match="Only 0 of 19200 pixels have depth"):
        PlaneRemoval()(frame.with_depth(np.full(SIZE, np.nan, np.float32)), (3.0, 3.0))
    noisy = frame.depth + np.random.default_rng(0).normal(0, 0.012, SIZE).astype(np.float32)
    with pytest.raises(ValueError, match=r"heights scatter by 1\d\.\d mm .* take PlaneRemoval\(height=0\.02"):
        PlaneRemoval()(frame.with_depth(noisy), (3.0, 3.0))
    with pytest.raises(ValueError, match="lies outside the image"):
        PlaneRemoval()(frame, (3.0, 300.0))


def test_a_region_of_one_colour_is_the_block_with_its_holes() -> None:
    frame = scene(*TWO)
    image = frame.image.copy()
    image[frame.segmentation == 0] = np.random.default_rng(0).integers(195, 206, ((frame.segmentation == 0).sum(), 1)) * np.array([1, 0, 0])
    u, v = pixel(*TWO[0][:2], 0.04)
    image[int(v) + 3, int(u) + 3] = 255
    region = RegionGrowing()(Frame(image, frame.camera), (u, v))
    assert np.array_equal(region, frame.segmentation == 0)


def test_a_region_as_large_as_the_background_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it is the background\. Click on the object"):
        RegionGrowing()(scene(*TWO), (2.0, 2.0))


def test_tracking_follows_blocks_that_move() -> None:
    tracker = PieceTracker()
    tracker.start(scene(*TWO), masks_of(scene(*TWO), "a", "b"))
    for step in range(1, 8):
        frame = scene((-0.1 + 0.03 * step, 0.05, 0.03, 0.04), TWO[1])
        found = tracker.track(frame)
        assert np.array_equal(found["a"], frame.segmentation == 0) and np.array_equal(found["b"], frame.segmentation == 1)


def test_a_block_that_jumps_beyond_the_gate_is_not_found_until_it_comes_back() -> None:
    tracker = PieceTracker()
    tracker.start(scene(*TWO), masks_of(scene(*TWO), "a", "b"))
    found = tracker.track(scene((-0.1, -0.1, 0.03, 0.04), TWO[1]))
    assert not found["a"].any() and found["b"].any()
    assert tracker.track(scene(*TWO))["a"].any()


def test_objects_are_matched_all_at_once_not_one_after_the_other() -> None:
    row = [(-0.04, 0.0, 0.015, 0.03), (0.02, 0.0, 0.015, 0.03)]
    tracker = PieceTracker()
    tracker.start(scene(*row), masks_of(scene(*row), "a", "b"))
    moved = scene(*[(x + 0.035, y, half, height) for x, y, half, height in row])  # the first is now nearest to where the second was
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmbiguousTrackingWarning)
        found = tracker.track(moved)
    assert np.array_equal(found["a"], moved.segmentation == 0) and np.array_equal(found["b"], moved.segmentation == 1)


def test_identical_blocks_that_come_close_are_warned_about_once() -> None:
    row = [(-0.1, 0.0, 0.015, 0.03), (0.1, 0.0, 0.015, 0.03)]
    tracker = PieceTracker()
    tracker.start(scene(*row), masks_of(scene(*row), "left", "right"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x in (-0.06, -0.02, 0.02, 0.04, 0.045):
            tracker.track(scene((x, 0.0, 0.015, 0.03), row[1]))
        tracker.track(scene((0.075, 0.035, 0.015, 0.03), row[1]))
    texts = [str(entry.message) for entry in caught if entry.category is AmbiguousTrackingWarning]
    assert len(texts) == len(set(texts)) <= 2 and any(text.startswith("'left' may be either of two pieces") for text in texts)


def test_identical_blocks_that_swap_between_two_frames_are_not_noticed_and_keep_their_places() -> None:
    row = [(-0.1, 0.0, 0.015, 0.03), (0.1, 0.0, 0.015, 0.03)]
    tracker = PieceTracker()
    tracker.start(scene(*row), masks_of(scene(*row), "left", "right"))
    swapped = scene(row[1], row[0])
    found = tracker.track(swapped)
    assert np.array_equal(found["left"], swapped.segmentation == 1)  # documented: places are all that it knows


def test_touching_blocks_share_a_piece_by_where_they_were() -> None:
    apart = [(-0.05, 0.0, 0.025, 0.04), (0.02, 0.0, 0.025, 0.045)]
    tracker = PieceTracker()
    tracker.start(scene(*apart), masks_of(scene(*apart), "a", "b"))
    touching = scene((-0.03, 0.0, 0.025, 0.04), apart[1])
    assert len(np.unique(PlaneRemoval().label(touching))) == 2
    found = tracker.track(touching)
    assert not (found["a"] & found["b"]).any()
    for number, name in enumerate("ab"):
        truth = touching.segmentation == number
        assert (found[name] & truth).sum() / (found[name] | truth).sum() > 0.8


def test_an_object_without_depth_in_the_first_frame_is_told() -> None:
    frame = scene(*TWO)
    depth = np.where(frame.segmentation == 0, np.nan, frame.depth)
    with pytest.raises(ValueError, match="'a' has no pixel with depth in the first frame"):
        PieceTracker().start(frame.with_depth(depth), masks_of(frame, "a", "b"))
    with pytest.raises(ValueError, match="Tracking by places needs depth"):
        PieceTracker().start(Frame(frame.image, frame.camera), masks_of(frame, "a"))


def test_stand_ins_read_instance_ids() -> None:
    frame, names = scene(*TWO), ("red_box", "blue_box")
    point = InstancePointer(names)(frame, "blue box")
    assert point is not None and np.allclose(point, pixel(*TWO[1][:2], 0.03), atol=1)
    mask = InstanceSegmenter(eroded=0)(frame, point)
    assert np.array_equal(mask, frame.segmentation == 1)
    assert InstanceSegmenter(eroded=1)(frame, point).sum() < mask.sum()
    assert not InstanceSegmenter()(frame, (1.0, 1.0)).any()
    tracker = InstanceTracker(names, eroded=0)
    assert np.array_equal(tracker.start(frame, {"red_box": mask})["red_box"], frame.segmentation == 0)
    hidden = scene(TWO[0])
    assert InstancePointer(names)(hidden, "blue_box") is None
    assert not InstanceTracker(names).start(hidden, {"blue_box": mask})["blue_box"].any()
    with pytest.raises(ValueError, match="no object 'mug' in the scene; the scene holds red_box, blue_box"):
        InstancePointer(names)(frame, "mug")
    with pytest.raises(ValueError, match="has no simulator segmentation"):
        InstancePointer(names)(Frame(frame.image, frame.camera), "red_box")


def test_the_pointed_pixel_lies_on_the_largest_piece_even_of_a_ring() -> None:
    ring = np.zeros(SIZE, bool)
    ring[10:50, 10:50] = True
    ring[15:45, 15:45] = False
    ring[80:90, 80:90] = True
    assert largest_piece(ring).sum() == 1600 - 900
    frame = Frame(np.zeros((*SIZE, 3), np.uint8), camera(), segmentation=np.where(ring, 0, -1))
    u, v = InstancePointer(["ring"])(frame, "ring")
    assert ring[int(v), int(u)] and u < 50


def test_points_of_a_frame_are_over_the_table() -> None:
    frame = scene(*TWO)
    assert np.nanmax(base_points(frame.depth, frame.camera)[..., 2]) == pytest.approx(0.04, abs=1e-6)

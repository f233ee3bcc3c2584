import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

from visiongraft.media.animated_glb import write_animated_glb
from visiongraft.media.mesh_sequences import write_npz
from visiongraft.media.meshes import write_mesh
from visiongraft.methods.action_mesh import evaluation
from visiongraft.methods.action_mesh.benchmark_files import read_prediction, read_surfaces
from visiongraft.methods.action_mesh.evaluation import evaluate_files, evaluate_folder, summary_path
from visiongraft.metrics.animated_meshes import VARIANTS, AnimationProtocol, animation_frames, sample_tracked, score_animation
from visiongraft.metrics.registration import IcpOptions

QUICK = AnimationProtocol(points=150, icp_points=40, queries=100, icp=IcpOptions(steps=5, distinct=True))

OTHER = AnimationProtocol(points=150, icp_points=40, queries=100, icp=IcpOptions(steps=2, distinct=True))


def animation(seed=0, num_frames=3):
    box = trimesh.creation.box((1.4, 0.6, 0.3)).subdivide()
    rest = torch.from_numpy(box.vertices.copy()).float()
    frames = [rest + torch.tensor([0.0, 0.1 * k, 0.0]) * (rest[:, :1] + seed) for k in range(num_frames)]
    return torch.stack(frames), torch.from_numpy(box.faces.copy()).long()


def write_truth(folder, uid, seed=0):
    points = sample_tracked(animation_frames(*animation(seed)), 120)
    (folder / uid).mkdir(parents=True)
    np.save(folder / uid / "surfaces.npy", torch.cat([points, torch.zeros_like(points)], -1).numpy())


def write_frames(folder, uid, seed=0, num_frames=3, suffix=".glb"):
    vertices, faces = animation(seed, num_frames)
    for k, frame in enumerate(vertices):
        write_mesh(folder / uid / f"mesh_{k:02d}{suffix}", frame, faces)


@pytest.fixture
def folders(tmp_path):
    truth, predictions = tmp_path / "truth", tmp_path / "predictions"
    for seed, uid in enumerate(("ant", "bee")):
        write_truth(truth, uid, seed)
        write_frames(predictions, uid, seed)
    return truth, predictions, tmp_path / "out" / "results.csv"


def rows_of(path):
    with path.open(newline="") as file:
        return {row["uid"]: row for row in csv.DictReader(file)}


def test_rows_are_the_scores_and_the_summary_their_means(folders):
    summary = evaluate_folder(*folders, QUICK)
    rows = rows_of(folders[2])
    for uid in ("ant", "bee"):
        expected = score_animation(read_surfaces(folders[0] / uid / "surfaces.npy"), read_prediction(folders[1] / uid, 3), QUICK)
        got = rows[uid]
        assert [float(got[name]) for name in ("cd_3d", "cd_4d", "cd_motion")] == pytest.approx(expected[:3], rel=1e-6)
        assert (got["status"], got["n_frames"], got["error_message"]) == ("success", "3", "")
    for name in ("cd_3d", "cd_4d", "cd_motion", "flicker", "detour"):
        assert summary[f"{name}_mean"] == pytest.approx(np.mean([float(row[name]) for row in rows.values()]))
    assert summary["complete"] and summary["n_success"] == summary["n_ground_truth"] == 2
    assert json.loads(summary_path(folders[2]).read_text()) == summary
    # all vertices of the boxes move uniformly
    assert summary["flicker_mean"] == pytest.approx(0, abs=1e-5)


def test_an_evaluation_goes_on_and_tries_failures_again(folders, monkeypatch):
    _, predictions, output = folders
    (predictions / "bee" / "mesh_02.glb").rename(predictions / "bee" / "hidden.txt")
    with pytest.warns(UserWarning, match=r"over 1 of 2 samples: 0 have no prediction, 1 failed"):
        first = evaluate_folder(*folders, QUICK)
    assert "has 2 frames, but the ground truth has 3" in first["failed"]["bee"] and not first["complete"]
    (predictions / "bee" / "hidden.txt").rename(predictions / "bee" / "mesh_02.glb")
    asked = []

    def counted(*args, **options):
        asked.append(args)
        return score_animation(*args, **options)

    monkeypatch.setattr(evaluation, "score_animation", counted)
    second = evaluate_folder(*folders, QUICK)
    assert len(asked) == 1 and second["complete"] and second["failed"] == {}
    assert float(rows_of(output)["ant"]["cd_3d"]) > 0
    evaluate_folder(*folders, QUICK, recompute=True)
    assert len(asked) == 3


def test_a_run_that_is_killed_keeps_all_rows_of_before(folders, monkeypatch):
    write_truth(folders[0], "aaa")
    with pytest.warns(UserWarning, match="1 have no prediction"):
        evaluate_folder(*folders, QUICK)
    before = rows_of(folders[2])
    write_frames(folders[1], "aaa")

    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "score_animation", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_folder(*folders, QUICK)
    assert rows_of(folders[2]) == before


def test_one_failure_is_reported_and_never_averaged_away(folders):
    write_truth(folders[0], "cat")
    write_frames(folders[1], "dog")
    np.save(folders[0] / "bee" / "surfaces.npy", np.zeros((3, 5)))
    with pytest.warns(UserWarning, match=r"over 1 of 3 samples: 1 have no prediction, 1 failed"):
        summary = evaluate_folder(*folders, QUICK)
    assert summary["missing_predictions"] == ["cat"] and summary["without_ground_truth"] == ["dog"]
    assert "must hold (frames, points, 6)" in summary["failed"]["bee"] and "got (3, 5)" in summary["failed"]["bee"]
    assert rows_of(folders[2])["bee"]["status"] == "error"


def test_faces_that_differ_fail_cd_m_and_pass_without_it(folders):
    vertices, faces = animation()
    write_mesh(folders[1] / "ant" / "mesh_01.glb", vertices[1], faces[:-1])
    with pytest.warns(UserWarning, match="1 failed"):
        summary = evaluate_folder(*folders, QUICK)
    assert "Frame 1 has" in summary["failed"]["ant"] and "motion=False" in summary["failed"]["ant"]
    output = folders[2].with_name("no_motion.csv")
    summary = evaluate_folder(folders[0], folders[1], output, QUICK, motion=False)
    assert summary["complete"] and summary["cd_motion_mean"] is None
    # a mean over the one sample that has the number would be of another set
    assert summary["flicker_mean"] is None and summary["detour_mean"] is not None


def test_animated_files_are_predictions_too(tmp_path):
    vertices, faces = animation()
    for name in ("arrays", "glb"):
        (tmp_path / name).mkdir()
    write_npz(tmp_path / "arrays" / "animation.npz", vertices, faces)
    write_animated_glb(tmp_path / "arrays" / "animation.glb", vertices, faces)
    write_animated_glb(tmp_path / "glb" / "animation.glb", vertices, faces)
    for name in ("arrays", "glb"):
        meshes = read_prediction(tmp_path / name, 2)
        assert len(meshes) == 2 and torch.equal(meshes[0].faces, faces)
        torch.testing.assert_close(torch.stack([mesh.vertices for mesh in meshes]), vertices[:2], atol=1e-6, rtol=0)


def test_frames_are_read_in_natural_order(tmp_path):
    vertices, faces = animation(1, 11)
    for k, frame in enumerate(vertices):
        write_mesh(tmp_path / f"mesh_{k}.obj", frame, faces)
    meshes = read_prediction(tmp_path, 11)
    torch.testing.assert_close(torch.stack([mesh.vertices for mesh in meshes]), vertices, atol=1e-6, rtol=0)


def test_the_command_prints_the_means_and_fails_where_samples_are_missing(folders, capsys, monkeypatch):
    monkeypatch.setitem(VARIANTS, "light", QUICK)
    truth, predictions, output = folders
    options = SimpleNamespace(
        ground_truth=truth,
        predictions=predictions,
        output=output,
        variant="light",
        motion=True,
        pattern="mesh_*",
        recompute=False,
        device="cpu",
    )
    assert evaluate_files(options) == 0
    assert "2 of 2 samples evaluated (light)" in (printed := capsys.readouterr().out) and "cd_motion: 0." in printed
    write_truth(folders[0], "cat")
    with pytest.warns(UserWarning, match="over 2 of 3 samples"):
        assert evaluate_files(options) == 1


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda t, p, o: [f.unlink() for f in t.glob("*/*.npy")], FileNotFoundError, "no ground truth in .* <uid>/surfaces.npy"),
        (lambda t, p, o: [f.unlink() for f in p.glob("*/*.glb")], FileNotFoundError, "no predictions in .* <uid>/mesh_"),
        (
            lambda t, p, o: [d.rename(p / f"x_{d.name}") for d in list(p.iterdir())],
            FileNotFoundError,
            r"2 \(x_ant, x_bee\), .* 2 \(ant",
        ),
        (lambda t, p, o: o.parent.mkdir() or o.write_text("uid\n"), ValueError, "cannot be gone on with"),
        (lambda t, p, o: evaluate_folder(t, p, o, OTHER), ValueError, "was written with other settings"),
    ],
)
def test_folders_that_cannot_be_evaluated_are_refused(folders, spoil, error, message):
    spoil(*folders)
    with pytest.raises(error, match=message):
        evaluate_folder(*folders, QUICK)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: None, FileNotFoundError, "no folder of a prediction"),
        (lambda f: f.mkdir(), FileNotFoundError, "has no mesh; give one mesh a frame"),
        (lambda f: write_frames(f.parent, f.name, num_frames=1), ValueError, "has 1 frames, but the ground truth has 3"),
        (lambda f: [write_frames(f.parent, f.name, suffix=s) for s in (".glb", ".obj")], ValueError, r"several kinds \(.glb, .obj\)"),
        (lambda f: [write_npz(f / f"{k}.npz", *animation()) for k in (1, 2)], ValueError, r"2 animated meshes \(1.npz, 2.npz\)"),
    ],
)
def test_predictions_that_cannot_be_read_are_refused(tmp_path, make, error, message):
    make(tmp_path / "ant")
    with pytest.raises(error, match=message):
        read_prediction(tmp_path / "ant", 3)


def test_ground_truth_that_is_no_array_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ground truth"):
        read_surfaces(tmp_path / "surfaces.npy")
    (tmp_path / "surfaces.npy").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"not an array of NumPy .* download it again"):
        read_surfaces(tmp_path / "surfaces.npy")

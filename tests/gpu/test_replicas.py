"""The backward pass of a replica recorded into a CUDA graph, on one GPU that is a group by itself."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

WIDTH = 64


@pytest.fixture
def replica(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group("nccl", f"file://{tmp_path}/store", rank=0, world_size=1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 1)]
    stream = torch.cuda.current_stream()
    yield DistributedDataParallel(torch.nn.Sequential(*layers).cuda(), device_ids=[0])
    torch.cuda.synchronize()
    torch.cuda.set_stream(stream)
    torch.distributed.destroy_process_group()


def gradients(model, x):
    """Of one pass, as a micro-batch of a graphed step leaves them."""
    from cctrain.engines.replicas import average_gradients, without_reducer

    with without_reducer(model):
        model(x).square().sum().backward()
    average_gradients(model)
    return [parameter.grad for parameter in model.parameters()]


def test_its_gradients_are_recorded_once_its_reducer_began_on_the_recorded_stream(replica):
    from cctrain.engines.replicas import rebuild_reducer
    from cctrain.steps.capture import CudaRecorder

    recorder = CudaRecorder()
    recorder.begin()
    rebuild_reducer(replica)
    batches = torch.randn(3, 8, WIDTH, device="cuda")
    expected = []
    for batch in batches:
        replica.zero_grad(set_to_none=True)
        expected.append([one.clone() for one in gradients(replica, batch)])
    arrived, recorded = batches[0].clone(), []
    replica.zero_grad(set_to_none=True)
    graph = recorder.record(lambda: recorded.extend(gradients(replica, arrived)))
    for batch, wanted in zip(batches, expected, strict=True):
        arrived.copy_(batch)
        for one in recorded:
            one.zero_()
        graph.replay()
        for one, found in zip(wanted, recorded, strict=True):
            torch.testing.assert_close(found, one)

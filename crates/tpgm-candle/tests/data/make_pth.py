"""Writes the PyTorch checkpoints that the tests read: `python make_pth.py`, PyTorch 2."""

import torch

embed = torch.arange(12, dtype=torch.float32).reshape(4, 3) / 8
state = {
    "embed.weight": embed,
    "lm_head.weight": embed,  # tied: one storage under two names
    "half.weight": torch.tensor([0.5, -1.25, 3.0], dtype=torch.float16),
    "brain.weight": torch.tensor([[0.5], [-1.25]], dtype=torch.bfloat16),
    "double.weight": torch.tensor([1 / 3], dtype=torch.float64),
    "transposed.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),  # column-major
    "tail.weight": embed.reshape(-1)[8:],  # starts inside a storage
    "bn.running_mean": torch.tensor([0.5, 0.25]),
    "bn.num_batches_tracked": torch.tensor(7),
}
torch.save(state, "state_dict.pth")
torch.save({"epoch": 3, "state_dict": {"fc.weight": torch.ones(2, 2), "fc.bias": torch.nn.Parameter(torch.zeros(2))}}, "nested.pth")
# As MoCo-v3 saves a run: the encoder's names, and an optimizer with tensors of its own beside them.
conv = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3, 1, 1))
optimizer = torch.optim.SGD([conv], 0.1, momentum=0.9)
conv.sum().backward()
optimizer.step()
moco = {
    "module.base_encoder.conv1.weight": conv.detach(),
    "module.base_encoder.bn1.num_batches_tracked": torch.tensor(7),
    "module.base_encoder.fc.0.weight": torch.ones(2, 2),
    "module.momentum_encoder.conv1.weight": torch.zeros(2, 3, 1, 1),
}
torch.save({"epoch": 3, "arch": "resnet50", "state_dict": moco, "optimizer": optimizer.state_dict()}, "moco.pth.tar")
torch.save({"strided.weight": torch.arange(8.0).reshape(2, 4)[:, ::2]}, "strided.pth")
torch.save({"epoch": 3}, "no_tensors.pth")
torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)

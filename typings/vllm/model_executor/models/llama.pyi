from collections.abc import Iterable

import torch

class LlamaForCausalLM:
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]: ...

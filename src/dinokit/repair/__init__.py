"""Other forms of a network: repaired, or broken on purpose. Each takes images and gives `Tokens`, as the network itself does."""

from dinokit.repair.ablation import ABLATIONS, AblatedRegisters, ablate, without_registers
from dinokit.repair.attention import AttentionBias, MaskedKeys, NeighbourAttention
from dinokit.repair.calibrate import Calibration, calibrate, mean_keys_and_values, rank_neurons
from dinokit.repair.cosmetic import Denoised, NeighbourMedian
from dinokit.repair.shift import MovedOutliers, ShiftMode, TestTimeRegisters

__all__ = [
    "ABLATIONS",
    "AblatedRegisters",
    "AttentionBias",
    "Calibration",
    "Denoised",
    "MaskedKeys",
    "MovedOutliers",
    "NeighbourAttention",
    "NeighbourMedian",
    "ShiftMode",
    "TestTimeRegisters",
    "ablate",
    "calibrate",
    "mean_keys_and_values",
    "rank_neurons",
    "without_registers",
]

"""An embedded world for diffusion models: scenes with known truth, a small base trained on them, their judge."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The embedded base: a diffusers `StableDiffusionPipeline` folder for 64 x 64 pictures."""
GUIDANCE_SCALE = 4.0
"""What the embedded base draws best with; 7.5, the pipeline's own default, burns its pictures."""
JUDGE = Path(__file__).parent / "judge.safetensors"
"""The judge's weights, see `toyland.judge.Judge.load`."""

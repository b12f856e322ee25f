"""`python -m distillkit`, and through it `torchrun -m distillkit` and `accelerate launch -m distillkit`."""

from distillkit.cli import main

main()

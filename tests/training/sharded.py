"""`glide train`, the kind of training first, in processes that accelerate takes for GPUs: it shards over nothing else.

It prints how much of the weights each process holds.
"""

import sys

from accelerate import DistributedType, PartialState

from glide_cli.train import main
from glide_pipelines.training import trainer
from glide_pipelines.training.run_state import RunState
from glide_pipelines.training.sharding import local


class State(RunState):
    def gather(self):
        parameters = self.parameters.values()
        print(f"holds {sum(local(each).numel() for each in parameters) / sum(each.numel() for each in parameters):.2f}")
        return super().gather()


PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
trainer.RunState = State
sys.exit(main(sys.argv.pop(1)))

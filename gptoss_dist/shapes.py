from gptoss_dist.model.shapes import *  # noqa
from gptoss_dist.model.shapes import is_packed

from gptoss_dist.model.mxfp4 import *  # noqa

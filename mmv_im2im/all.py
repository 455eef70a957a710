"Everything public, for notebooks: `from mmv_im2im.all import *`."
from mmv_im2im.core import *
from mmv_im2im.config import *
from mmv_im2im.metrics import *
from mmv_im2im.vis import *
from mmv_im2im.tiling import *
from mmv_im2im.data_modules.images import *
from mmv_im2im.data_modules.layouts import *
from mmv_im2im.data_modules.samples import *
from mmv_im2im.data_modules.transforms import *
from mmv_im2im.data_modules.data_module import *
from mmv_im2im.models.base import *
from mmv_im2im.models.losses import *
from mmv_im2im.models.fcn import *
from mmv_im2im.trainers import *
from mmv_im2im.inference.predictor import *
from mmv_im2im.cli import *

"Frameworks and their parts; what adds to `Im2ImModule` is imported with any of them."
from . import base, validation, tiled, building

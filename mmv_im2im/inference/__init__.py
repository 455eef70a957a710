"Prediction; what adds to `Predictor` is imported with it."
from . import predictor, folders

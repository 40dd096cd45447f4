"""The page and the JSON API of the alert list: FastAPI, templates rendered here, scripts only to make them smoother."""

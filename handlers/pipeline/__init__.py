"""The pipeline: plan and sampling decide; stage, transport and driver do."""

"""What a run can do: one module a job."""

"""Many prompts in files, every answer exactly once.

records         a line of input: its id, and the request it asks for, or why it is none
sources         files, gzip, zstd and standard input as lines
unpack          their bytes
rows            Parquet files and datasets folders as lines
scan            the first pass: how many records there are, which are repeated, digests
part            answers on their way to disk, and what is found there after a restart
shares          who answers which records, where several processes share one input
answers         a record as requests to the engine, and tokens as the body of its answer
functions       the user's own Python functions
function_files  where those are found
calls           calls of them under way
dialogue        a conversation that grows by calls and their results
rounds          an answer that may call functions
driver          records in, steps of the engine, lines out
output_files    what lies beside the output
merge           the end: every record has its line, in the order of the input
manifest        what was run, beside the output
progress        how far it is
summary         what it came to
"""

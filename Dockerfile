# The command line of refusal-cliff; docs/tutorial/install.md says how to build and run it.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# TORCH_INDEX is the package index to take PyTorch from, for the CPU build or another CUDA. Without
# it PyTorch comes from the same index as everything else.
ARG TORCH_INDEX=""
# EXTRAS are names of pyproject.toml, such as api,figures.
ARG EXTRAS=""

# Whoever runs it (--user), models and caches go into /cache, and relative paths are in /work.
ENV HOME=/cache USER=cliff HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
RUN useradd --home-dir /cache --no-create-home cliff \
 && install --directory --mode 1777 /cache /cache/huggingface /work

WORKDIR /build
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"

USER cliff
WORKDIR /work
VOLUME /cache
# Process 1 does not see SIGTERM unless it asks for it; an interrupt it answers at once.
STOPSIGNAL SIGINT
ENTRYPOINT ["refusal-cliff"]
CMD ["--help"]

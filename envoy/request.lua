-- Envoy runs this only for paths below /models/.
--
-- /models/{id}/proxy/<rest> is <rest> asked of model {id}. /models/{id} alone is a model's URL as Hugging Face's clients
-- take it: they post to it as it is, and put the paths below behind it. Headers of these names that a caller sends never get here:
-- they are removed before any filter runs.

local function unhex(digits)
  return string.char(tonumber(digits, 16))
end

-- The model's name, percent-decoded. A name that no header may carry (control or non-ASCII bytes) stays encoded.
local function decoded(segment)
  local name = segment:gsub("%%(%x%x)", unhex)
  if name:find("[^ -~]") then return segment end
  return name
end

local BEHIND_A_MODEL = {
  ["POST "] = "/", ["POST /"] = "/",
  ["GET /info"] = "/info", ["GET /health"] = "/health",
  ["POST /v1/chat/completions"] = "/v1/chat/completions",
}

local function model_url(headers)
  local model, rest, query = headers:get(":path"):match("^/models/([^/?]+)([^?]*)(.*)$")
  local path = model and BEHIND_A_MODEL[headers:get(":method") .. " " .. rest]
  if path == nil then return end
  headers:replace(":path", path .. query)
  headers:replace("x-headrace-model", decoded(model))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local model, rest = headers:get(":path"):match("^/models/([^/?]+)/proxy(.*)$")
  if model == nil then return model_url(headers) end
  local mark = rest:sub(1, 1)
  if mark == "" or mark == "?" then
    rest = "/" .. rest
  elseif mark ~= "/" then
    return
  end
  -- Older OICM clients name the engine before the version: /proxy/vllm/v1/…, /proxy/tgi/v1/….
  rest = rest:gsub("^/vllm(/v1/)", "%1"):gsub("^/tgi(/v1/)", "%1")
  headers:replace(":path", rest)
  headers:replace("x-headrace-model", decoded(model))
  headers:replace("x-headrace-surface", "oicm")
end

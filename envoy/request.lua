-- Envoy runs this only for paths below /models/.
--
-- /models/{id}/proxy/<rest> is <rest> asked of model {id}. Headers of these names that a caller sends never get here:
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

function envoy_on_request(handle)
  local headers = handle:headers()
  local model, rest = headers:get(":path"):match("^/models/([^/?]+)/proxy(.*)$")
  if model == nil then return end
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

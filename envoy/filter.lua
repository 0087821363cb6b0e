-- Runs for every request: no table is built and nothing is searched unless the path says so.

local MODEL, SURFACE, STATUS = "x-headrace-model", "x-headrace-surface", "x-http-status"

local function unhex(digits)
  return string.char(tonumber(digits, 16))
end

-- The model's name, percent-decoded. A name that no header may carry (control or non-ASCII bytes) stays encoded.
local function decoded(segment)
  local name = segment:gsub("%%(%x%x)", unhex)
  if name:find("[^ -~]") then return segment end
  return name
end

-- /models/{id}/proxy/<rest> is <rest> asked of model {id}. x-headrace-* from outside never gets here: they are
-- removed before any filter runs.
function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  if path == nil or path:sub(1, 8) ~= "/models/" then return end
  local model, rest = path:match("^/models/([^/?]+)/proxy(.*)$")
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
  headers:replace(MODEL, decoded(model))
  headers:replace(SURFACE, "oicm")
end

-- A facade answers every error as an ordinary message and names the status in a header. A gRPC client must not see
-- a status other than 200, whatever it calls.
function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(STATUS)
  if status == nil then return end
  headers:remove(STATUS)
  local kind = headers:get("content-type")
  if kind ~= nil and kind:sub(1, 16) == "application/grpc" then return end
  headers:replace(":status", status)
end

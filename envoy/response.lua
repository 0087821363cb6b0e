-- Envoy runs this only for answers that are not a plain 200: those with x-http-status, or with another :status.

local NAMES = {
  "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
  "permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range", "unimplemented",
  "internal", "unavailable", "data_loss", "unauthenticated",
}

-- A facade answers an error as an ordinary message and names the status in a header. A gRPC client that calls a facade
-- must still see 200, or it would take the answer for a broken connection.
local function facade_status(headers, kind, status)
  headers:remove("x-http-status")
  if kind:sub(1, 16) ~= "application/grpc" and status:find("^[2-5]%d%d$") then
    headers:replace(":status", status)
  end
end

-- Waiting for the body ends the life of the headers object that was there before.
-- The transcoder prints a failed RPC as google.rpc.Status: its message is called "error" by all REST clients.
local function status_body(handle)
  local body = handle:body()
  if body == nil then return end
  local code, rest = body:getBytes(0, body:length()):match('^{"code":(%d+),"message":(.*)}$')
  if code == nil then return end
  local name = NAMES[tonumber(code)] or "unknown"
  local length = body:setBytes('{"error":' .. rest .. ',"error_type":"' .. name .. '"}')
  handle:headers():replace("content-length", length)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local kind = headers:get("content-type") or ""
  local status = headers:get("x-http-status")
  if status ~= nil then
    facade_status(headers, kind, status)
  elseif kind == "application/json" then
    status_body(handle)
  end
end

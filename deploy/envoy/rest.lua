-- What HTTP has and the transcoder has not: ranges, conditions, and statuses other than those of gRPC's codes.

-- Of numbers that Lua, which has doubles only, computes exactly.
local MAX_DIGITS = 15
local MAX_OFFSET = string.rep("9", MAX_DIGITS)

local function append(parameters, name, value)
  parameters[#parameters + 1] = name .. "=" .. value
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  local view = path:match("^/image/[^/]+/(%a+)$")
  if view ~= "content" and view ~= "thumbnail" then
    return
  end
  local parameters = {}
  if query ~= "" then
    parameters[1] = query
  end
  if view == "thumbnail" and not ("&" .. query):find("&rendition=", 1, true) then
    append(parameters, "rendition", "RENDITION_256")
  end
  local held = (headers:get("if-none-match") or ""):match('^W?/?"(%x+)"$')
  if held then
    append(parameters, "ifNoneMatch", held)
  end
  -- Other ranges are answered with the whole, as HTTP allows.
  local first, last = (headers:get("range") or ""):match("^bytes=(%d+)%-(%d*)$")
  if first and not headers:get("if-range") and (last == "" or tonumber(first) <= tonumber(last)) then
    append(parameters, "readOffset", #first <= MAX_DIGITS and first or MAX_OFFSET)
    if last ~= "" and #last <= MAX_DIGITS then
      append(parameters, "readLimit", string.format("%d", tonumber(last) - tonumber(first) + 1))
    end
  end
  headers:replace(":path", path .. "?" .. table.concat(parameters, "&"))
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if (headers:get("content-type") or ""):find("^application/grpc") then
    return
  end
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-accept-encoding")
  if headers:get(":status") == "401" then
    headers:add("www-authenticate", 'Basic realm="PixyProxy", charset="UTF-8"')
  end
  local status = headers:get("x-http-code")
  if status then
    headers:replace(":status", status)
    headers:remove("x-http-code")
  end
  local length = headers:get("x-http-content-length")
  if length then
    headers:replace("content-length", length)
    headers:remove("x-http-content-length")
    -- An error after the first byte only ends the body early. HTTP/2 shows that to the client, HTTP/1 by the end of the
    -- connection.
    if handle:streamInfo():protocol() ~= "HTTP/2" then
      handle:streamInfo():drainConnectionUponCompletion()
    end
  end
end

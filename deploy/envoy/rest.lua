-- What HTTP has and the transcoder has not: ranges, conditions, statuses other than those of gRPC's codes, and the refusal of
-- unknown names in a body.

-- Of numbers that Lua, which has doubles only, computes exactly.
local MAX_DIGITS = 15
local MAX_OFFSET = string.rep("9", MAX_DIGITS)

-- The fields of requests that have a body, and of the messages in them. A test compares them with the contract.
local INPUT = { guid = true }
local FIELDS = {
  POST = {
    prompt = true, tags = true, visibility = true, filename = true, requestId = true, mask = INPUT, inputs = INPUT,
    options = {
      model = true, size = true, quality = true, outputFormat = true, background = true, moderation = true,
      outputCompression = true, partialImages = true, inputFidelity = true,
    },
  },
  PATCH = { guid = true, filename = true, tags = true, visibility = true, updateMask = true },
}
local MAX_DEPTH = 8

-- Returns the position of the quote that ends a string.
local function string_end(text, at)
  repeat
    at = text:find('["\\]', at + 1)
    if not at then
      error("no end")
    end
    local is_escape = text:sub(at, at) == "\\"
    at = is_escape and at + 1 or at
  until not is_escape
  return at
end

-- Raises the first name in a JSON value that its message does not have, as { name }; returns the position after the value.
-- Raises a text where it is no JSON, which the transcoder refuses.
local function check_names(text, at, fields, depth)
  local kind
  at, kind = text:match("^%s*()(.)", at)
  if not at or depth > MAX_DEPTH then
    error("no value")
  end
  if kind == '"' then
    return string_end(text, at) + 1
  elseif kind ~= "{" and kind ~= "[" then
    return text:match("^[%w.+-]+()", at) or error("no value")
  end
  local next_at, separator = text:match("^%s*()([%]}]?)", at + 1)
  while separator == "" or separator == "," do
    local wanted = fields
    if kind == "{" then
      local first = text:match('^%s*()"', next_at) or error("no name")
      local last = string_end(text, first)
      local name = text:sub(first + 1, last - 1)
      wanted = fields[name:gsub("_(%l)", string.upper)]
      if not wanted then
        error({ name = name })
      end
      next_at = text:match("^%s*:()", last + 1) or error("no value")
    end
    next_at = check_names(text, next_at, type(wanted) == "table" and wanted or {}, depth + 1)
    next_at, separator = text:match("^%s*()([,%]}])", next_at)
    if not separator then
      error("no end")
    end
    next_at = separator == "," and next_at + 1 or next_at
  end
  return next_at + 1
end

-- A misspelt request_id would be paid for again, and a misplaced option would be another image.
local function refuse_unknown_names(handle, fields)
  local body = handle:body()
  local is_known, problem = pcall(check_names, body and body:getBytes(0, body:length()) or "", 1, fields, 1)
  if not is_known and type(problem) == "table" then
    local shown = problem.name:match("^[%w_]+$") and (": " .. problem.name) or ""
    -- Becomes JSON as Envoy's own errors do.
    handle:respond({ [":status"] = "400" }, "The JSON body has an unknown name" .. shown .. ".")
  end
end

local function append(parameters, name, value)
  parameters[#parameters + 1] = name .. "=" .. value
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  local method = headers:get(":method")
  if method == "POST" and path == "/image" or method == "PATCH" and path:find("^/image/[^/]+$") then
    return refuse_unknown_names(handle, FIELDS[method])
  end
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

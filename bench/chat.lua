-- The call that wrk makes of the relay and of its baseline.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"plain","stream":false,"messages":[{"role":"system","content":"You are brief."},' ..
	'{"role":"user","content":"Which animal jumps over which?"}]}'

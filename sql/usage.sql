--
-- Counters: what was authorized reads back after a flush. How many rows a flush
-- writes depends on when the worker last did it by itself.
--
SELECT regpilot.create_project('usage test', 'enterprise') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'counted', 'staging') \gset
SELECT key_id AS id2, key AS key2 FROM regpilot.create_key(:'project', 'refused') \gset
SELECT regpilot.flush_usage() >= 0;

SELECT count(*) FROM (SELECT regpilot.authorize(:'key', 'gateway:read', e)
	FROM unnest('{dev,ci,ci,NULL,NULL,NULL,laptop}'::text[]) e OFFSET 0) a;
SELECT verdict FROM regpilot.authorize(:'key2', 'no such permission');
SELECT regpilot.flush_usage() >= 0;
SELECT environment, total_requests, failed_requests, prompt_tokens, completion_tokens,
	last_used_at BETWEEN now() - interval '1 minute' AND now() AS last_used_at
FROM regpilot.key_usage WHERE key_id = :'key_id' ORDER BY environment;
SELECT count(*) FROM regpilot.key_usage WHERE key_id = :'id2';

-- a second flush adds nothing
SELECT regpilot.flush_usage() >= 0;
SELECT sum(total_requests) FROM regpilot.key_usage;

-- outcomes: failures and tokens; a null, a key that is none, a negative count change nothing
SELECT regpilot.record_many(ARRAY[:'key_id', :'key_id', :'key_id', :'key_id', '00000000-0000-0000-0000-000000000000', NULL]::uuid[],
	'{staging,staging,ci,dev,dev,dev}', '{200,399,400,502,500,500}', '{12,34,NULL,0,0,0}', '{builtin/echo,NULL,x,x,x,x}',
	'{3,4,NULL,-5,7,7}', '{10,20,30,NULL,7,7}');
SELECT regpilot.flush_usage() >= 0;
SELECT environment, total_requests, failed_requests, prompt_tokens, completion_tokens
FROM regpilot.key_usage WHERE key_id = :'key_id' ORDER BY environment;
SELECT total_requests, failed_requests, error_rate, active_environments, last_used_at IS NOT NULL AS used
FROM regpilot.key_overview WHERE key_id = :'key_id';

-- an absurd number of tokens, of which an upstream may tell us, does not stop the counting
SELECT regpilot.record_many(ARRAY[:'id2', :'id2', :'id2']::uuid[], '{ci,ci,ci}', '{200,200,200}', '{1,1,1}', '{x,x,x}',
	'{9223372036854775807,9223372036854775807,-9223372036854775808}', '{9223372036854775807,1,1}');
SELECT regpilot.flush_usage() >= 0;
SELECT prompt_tokens, completion_tokens FROM regpilot.key_usage WHERE key_id = :'id2';

SELECT * FROM error_of($$SELECT regpilot.record_many('{}', '{a}', '{}', '{}', '{}', '{}', '{}')$$);
SELECT * FROM error_of($$SELECT regpilot.record_many('{}', '{}', '{}', '{}', '{}', '{}', NULL)$$);
SELECT * FROM error_of($$SELECT regpilot.record_many('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{1}')$$);
SELECT regpilot.record_many('{}', '{}', '{}', '{}', '{}', '{}', '{}');

-- counts survive the transaction's end either way
BEGIN;
SELECT verdict FROM regpilot.authorize(:'key');
ROLLBACK;
SELECT regpilot.flush_usage() >= 0;
SELECT total_requests FROM regpilot.key_overview WHERE key_id = :'key_id';

-- hours: a row of key_usage whose hour is over leaves it in the history; the same
-- hour twice, as after the clock was set back, adds up
SELECT environment, hour = date_trunc('hour', hour, 'UTC') AS whole, total_requests, failed_requests, prompt_tokens, completion_tokens
FROM regpilot.usage_hourly WHERE key_id = :'key_id' ORDER BY environment;
UPDATE regpilot.key_usage SET hour = '2026-01-01 10:00+00' WHERE key_id = :'key_id' AND environment = 'staging';
SELECT verdict FROM regpilot.authorize(:'key');
SELECT regpilot.flush_usage() >= 0;
UPDATE regpilot.key_usage SET hour = '2026-01-01 10:00+00' WHERE key_id = :'key_id' AND environment = 'staging';
SELECT count(*) FROM (SELECT regpilot.authorize(:'key', 'gateway:read', 'staging') FROM generate_series(1, 2)) a;
SELECT regpilot.flush_usage() >= 0;
SELECT environment, hour < now() - interval '2 hours' AS past, total_requests, failed_requests, prompt_tokens, completion_tokens
FROM regpilot.usage_hourly WHERE key_id = :'key_id' AND environment = 'staging' ORDER BY hour;
SELECT u.environment, u.total_requests - sum(h.total_requests) AS difference
FROM regpilot.key_usage u JOIN regpilot.usage_hourly h USING (key_id, environment)
WHERE key_id = :'key_id' GROUP BY u.key_id, u.environment ORDER BY 1;

-- what shared memory holds
SELECT bytes > slots * 100, slots >= 100000, slots_used > 0, slots_unflushed, evicted, refused,
	flushed_at BETWEEN now() - interval '1 minute' AND now(), flushed_rows >= 0
FROM regpilot.shared_memory_status();

-- environments seen in the last 30 days only
UPDATE regpilot.key_usage SET last_used_at = now() - interval '31 days' WHERE key_id = :'key_id' AND environment <> 'ci';
SELECT active_environments FROM regpilot.key_overview WHERE key_id = :'key_id';

-- a deleted key has nowhere to be counted, and hinders no one
SELECT verdict FROM regpilot.authorize(:'key2');
SELECT verdict FROM regpilot.authorize(:'key');
DELETE FROM regpilot.api_key WHERE id = :'id2';
SELECT regpilot.flush_usage() >= 0;
SELECT total_requests FROM regpilot.key_overview WHERE key_id = :'key_id';
DELETE FROM regpilot.project WHERE id = :'project';
SELECT count(*) FROM regpilot.key_usage;
SELECT count(*) FROM regpilot.usage_hourly;

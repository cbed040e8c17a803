--
-- regpilot.secret: hashes on the way in, says nothing on the way out.
--
SELECT 'sk_example'::regpilot.secret;
SELECT 'sk_example'::regpilot.secret::text;
SELECT 'sk_example'::regpilot.secret::bytea = sha256('sk_example');
SELECT ''::regpilot.secret::bytea = sha256('');
SELECT repeat('x', 100000)::regpilot.secret::bytea = sha256(repeat('x', 100000)::bytea);
SELECT ARRAY['a', NULL, 'b']::regpilot.secret[];
SELECT to_json('a'::regpilot.secret), format('%s', 'a'::regpilot.secret);


-- a digest opens nothing: it is hashed like everything else
SELECT project, key FROM regpilot.create_project('secret test', 'enterprise') AS project,
	LATERAL regpilot.create_key(project, 'k') \gset
SELECT verdict FROM regpilot.authorize(:'key');
SELECT encode(sha256(:'key'), 'hex') AS digest \gset
SELECT verdict FROM regpilot.authorize(:'digest');
SELECT verdict FROM regpilot.authorize(('\x' || :'digest')::regpilot.secret);
SELECT verdict FROM regpilot.authorize(sha256(:'key')::text::regpilot.secret);

-- there is no way back, and no way around
SELECT sha256('x')::regpilot.secret;
SELECT 'x'::regpilot.secret = 'x'::regpilot.secret;
SELECT castsource::regtype, casttarget::regtype, castcontext FROM pg_cast
WHERE 'regpilot.secret'::regtype IN (castsource, casttarget);

-- a bound parameter has no plaintext where the server shows parameters
PREPARE find (regpilot.secret) AS SELECT verdict FROM regpilot.authorize($1);
EXECUTE find(:'key');
SET plan_cache_mode = force_custom_plan;
EXPLAIN (COSTS OFF, VERBOSE) EXECUTE find('sk_example');
EXPLAIN (COSTS OFF, VERBOSE) SELECT 'sk_example'::regpilot.secret::bytea;
RESET plan_cache_mode;

DELETE FROM regpilot.project WHERE id = :'project';

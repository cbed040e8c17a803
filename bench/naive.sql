-- The baseline that validates a key and UPDATEs a counter row, in plpgsql, as one
-- would write it without regpilot. Keys are the texts '1' to '100000', as in keys.sql.
CREATE TABLE naive_key (
	digest bytea PRIMARY KEY,
	active bool NOT NULL DEFAULT true,
	revoked_at timestamptz,
	expires_at timestamptz,
	permissions text[] NOT NULL DEFAULT '{gateway:read,gateway:write}',
	total_requests bigint NOT NULL DEFAULT 0,
	last_used_at timestamptz
) WITH (fillfactor = 50);
INSERT INTO naive_key (digest) SELECT sha256(i::text::bytea) FROM generate_series(1, 100000) i;

CREATE FUNCTION naive_authorize(secret text, permission text DEFAULT 'gateway:write') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	found_key naive_key;
BEGIN
	SELECT * INTO found_key FROM naive_key WHERE digest = sha256(secret::bytea);
	IF NOT FOUND THEN RETURN 'invalid'; END IF;
	IF found_key.revoked_at IS NOT NULL THEN RETURN 'revoked'; END IF;
	IF NOT found_key.active THEN RETURN 'inactive'; END IF;
	IF found_key.expires_at <= now() THEN RETURN 'expired'; END IF;
	IF NOT permission = ANY (found_key.permissions) THEN RETURN 'forbidden'; END IF;
	UPDATE naive_key SET total_requests = total_requests + 1, last_used_at = now()
		WHERE digest = found_key.digest;
	RETURN 'ok';
END
$$;

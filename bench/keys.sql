-- 100,000 keys without a limit: the texts '1' to '100000'.
SELECT regpilot.create_project('bench', 'enterprise');
INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
SELECT p.id, 'key ' || i, 'sk_...', sha256(i::text::bytea),
	'{gateway:read,gateway:write}'
FROM regpilot.project p, generate_series(1, 100000) i WHERE p.name = 'bench';
